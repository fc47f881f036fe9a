package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"teleport/internal/types"
)

// portLater makes parseAddr accept an address without a port and give it port 0.
const portLater = -1

// errText is an error made of a sentence that says what was expected. It gets
// its place and key from whoever reports it.
type errText string

func (e errText) Error() string { return string(e) }

func badf(format string, args ...any) error { return errText(fmt.Sprintf(format, args...)) }

// parseAddr reads "host:port". Unless defaultPort is 0 the port may be missing;
// with listen the host may be empty (every address) and the port 0 (any).
func parseAddr(s string, defaultPort int, listen bool) (string, error) {
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return "", badf("bad address %s: expected host:port without %q", quote(s), scheme+"://")
	}
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		host = s
		if inner, ok := strings.CutPrefix(s, "["); ok {
			host, _ = strings.CutSuffix(inner, "]")
		}
		if defaultPort == 0 || !isHost(host) || strings.Contains(host, "]") || len(s)-len(host) == 1 {
			return "", badf("bad address %s: expected host:port", quote(s))
		}
		if defaultPort == portLater {
			return net.JoinHostPort(host, "0"), nil
		}
		portText = strconv.Itoa(defaultPort)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || (port == 0 && !listen) {
		return "", badf("bad port %s in address %s: expected a number from 1 to 65535", quote(portText), quote(s))
	}
	if host == "" {
		if !listen {
			return "", badf("bad address %s: expected a host before the port", quote(s))
		}
		host = "0.0.0.0"
	}
	if !isHost(host) {
		return "", badf("bad host %s in address %s: expected an IP address or a host name", quote(host), quote(s))
	}
	return net.JoinHostPort(host, strconv.FormatUint(port, 10)), nil
}

// anyPort reports whether the address leaves the port to the system.
func anyPort(addr string) bool { return strings.HasSuffix(addr, ":0") }

func portOf(addr string) int {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		return 0
	}
	return n
}

func checkNodename(s string) error {
	if !validHostname(s) {
		return badf("bad node name %s: expected a host name: letters, digits, dots and hyphens", quote(s))
	}
	return nil
}

func checkAdvertised(s string) error {
	if !isHost(s) || s == "0.0.0.0" || s == "::" {
		return badf("bad address %s: expected an IP address or a host name that others can reach, without a port", quote(s))
	}
	return nil
}

func checkPath(s string) error {
	if !strings.HasPrefix(s, "/") {
		return badf("bad path %s: expected an absolute path", quote(s))
	}
	return nil
}

// isHost accepts IP addresses and host names. What ends in a number and is no
// address is a mistake, such as a port alone.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	last := s[strings.LastIndexByte(s, '.')+1:]
	if _, err := strconv.ParseUint(last, 10, 64); err == nil {
		return false
	}
	return validHostname(s)
}

func validHostname(s string) bool { return types.ValidHostname(s) == nil }

// hostname returns the system's host name. One that cannot be a node name is
// replaced by a UUID made from it, so that it stays the same at every start.
func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return uuid.NewString()
	}
	if !validHostname(name) {
		return uuid.NewSHA1(uuid.NameSpaceDNS, []byte(name)).String()
	}
	return name
}

// quote shows a value from a file in a message: bounded and printable.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "..."
	}
	return strconv.Quote(s)
}
