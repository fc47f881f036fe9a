package clickhouse

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"teleport/internal/fault"
)

const (
	headerUser     = "X-Clickhouse-User"
	headerKey      = "X-Clickhouse-Key"
	headerDatabase = "X-Clickhouse-Database"
	headerByCert   = "X-Clickhouse-Ssl-Certificate-Auth"
	headerCode     = "X-Clickhouse-Exception-Code"
	// maxParameters bounds the values of a query that are recorded.
	maxParameters = 64
)

// asked is what a request says of itself.
type asked struct {
	// user and database are whom and where it names, empty if it names none.
	user, database string
	// query is the text in the address, parameters are the values for it.
	query      string
	parameters []string
	// rest is the query of the address without who logs in.
	rest string
	// encoding is how the body is compressed, opaque the same if it cannot be read.
	encoding, opaque string
}

// read looks into a request.
func read(r *http.Request) (*asked, error) {
	switch r.Method {
	case http.MethodConnect, http.MethodTrace:
		return nil, fault.Unsupported("the method %s is none of a database", r.Method)
	}
	if r.Header.Get("Upgrade") != "" {
		return nil, fault.Unsupported("there is no other protocol to upgrade to")
	}
	a := &asked{}
	if err := a.readQuery(r.URL.RawQuery); err != nil {
		return nil, err
	}
	for _, v := range r.Header.Values(headerUser) {
		if err := one("user", &a.user, v); err != nil {
			return nil, err
		}
	}
	for _, v := range r.Header.Values(headerDatabase) {
		if err := one("database", &a.database, v); err != nil {
			return nil, err
		}
	}
	if user, _, ok := r.BasicAuth(); ok {
		if err := one("user", &a.user, user); err != nil {
			return nil, err
		}
	}
	if e := strings.ToLower(r.Header.Get("Content-Encoding")); e != "" && e != "identity" {
		a.encoding = e
		if e != encodingGzip {
			a.opaque = e
		}
	}
	return a, nil
}

// one takes the value of what a request may say in several ways, but not differently.
func one(what string, have *string, value string) error {
	if value == "" || value == *have {
		return nil
	}
	if *have != "" {
		return fault.Invalid("the request names the %ss %q and %q: name one", what, *have, value)
	}
	*have = value
	return nil
}

// readQuery looks into the query of an address as the server does: parameters end at "&"
// alone. What is not about the login stays byte for byte.
func (a *asked) readQuery(raw string) error {
	if strings.Contains(raw, "#") {
		return fault.Invalid("the address has a # in it: write it as %%23")
	}
	var rest []string
	for part := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(part, "=")
		name, err := url.QueryUnescape(name)
		if err == nil {
			value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return fault.Invalid("the address cannot be read: %v", err)
		}
		drop := false
		// The server looks for these by their letters, whatever their case.
		switch lower := strings.ToLower(name); {
		case lower == "user":
			drop, err = true, one("user", &a.user, value)
		case lower == "password":
			drop = true
		case lower == "database":
			err = one("database", &a.database, value)
		case name == "query":
			a.query += value
		case lower == "decompress" && value != "" && value != "0" && value != "false":
			a.encoding, a.opaque = "ClickHouse's own compression", "ClickHouse's own compression"
		case strings.HasPrefix(name, "param_") && len(a.parameters) < maxParameters:
			a.parameters = append(a.parameters, strings.TrimPrefix(name, "param_")+"="+value)
		}
		if err != nil {
			return err
		}
		if !drop {
			rest = append(rest, part)
		}
	}
	a.rest = strings.Join(rest, "&")
	return nil
}

// login has a request log in as the user by the certificate of the connection. The server
// refuses a request that shows anything else besides.
func (a *asked) login(h http.Header, user string) {
	for name := range h {
		if strings.HasPrefix(name, "X-Clickhouse-Jwt") {
			h.Del(name)
		}
	}
	for _, name := range []string{"Authorization", "Expect", headerKey} {
		h.Del(name)
	}
	h.Set(headerUser, user)
	h.Set(headerByCert, "on")
	if a.database != "" && h.Get(headerDatabase) != "" {
		h.Set(headerDatabase, a.database)
	}
}

// Codes and names of the server's exceptions.
type exception struct {
	status, code int
	name         string
}

func exceptionOf(err error) exception {
	switch {
	case errors.Is(err, fault.ErrDenied), errors.Is(err, fault.ErrUnauthenticated):
		return exception{http.StatusForbidden, 497, "ACCESS_DENIED"}
	case errors.Is(err, fault.ErrInvalid):
		return exception{http.StatusBadRequest, 36, "BAD_ARGUMENTS"}
	case errors.Is(err, fault.ErrUnsupported):
		return exception{http.StatusBadRequest, 48, "NOT_IMPLEMENTED"}
	}
	return exception{http.StatusBadGateway, 210, "NETWORK_ERROR"}
}

// tell answers with an error as the server does.
func tell(w http.ResponseWriter, err error) {
	e := exceptionOf(err)
	h := w.Header()
	h.Set(headerCode, strconv.Itoa(e.code))
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	w.WriteHeader(e.status)
	_, _ = fmt.Fprintf(w, "Code: %d. DB::Exception: %v. (%s)\n", e.code, err, e.name)
}
