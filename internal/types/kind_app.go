package types

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// Values of an application's rewrite.jwt_claims.
const (
	JWTClaimsAll    = "roles-and-traits"
	JWTClaimsRoles  = "roles"
	JWTClaimsTraits = "traits"
	JWTClaimsNone   = "none"
)

// ServerName is the name of the app_server or db_server with which a host serves a
// resource.
func ServerName(resource, hostID string) string { return resource + "@" + hostID }

// SplitServerName takes what ServerName made apart.
func SplitServerName(name string) (resource, hostID string, ok bool) {
	return strings.Cut(name, "@")
}

func appKind() KindInfo {
	return KindInfo{
		Name: KindApp, Plural: "apps", Aliases: []string{"application", "applications"},
		New:      func() Resource { return &typesv1.App{} },
		Defaults: defaults(defaultApp),
		Validate: validate(validateApp),
		Columns: []Column{
			nameColumn("Application"),
			column("Description", func(a *typesv1.App) string { return a.GetMetadata().GetDescription() }),
			column("URI", func(a *typesv1.App) string { return a.GetSpec().GetUri() }),
			column("Public Address", func(a *typesv1.App) string { return a.GetSpec().GetPublicAddr() }),
			column("Labels", func(a *typesv1.App) string { return labelText(AppLabels(a)) }),
		},
		Writable: true, Served: true,
		versions: []string{"v3"},
		name:     ValidAppName,
	}
}

func defaultApp(a *typesv1.App) {
	if a.Spec == nil {
		a.Spec = &typesv1.AppSpec{}
	}
	a.Spec.PublicAddr = strings.ToLower(a.Spec.PublicAddr)
}

// ValidAppName checks the name of an application, which becomes a part of a host name.
func ValidAppName(s string) error {
	if err := sized("a name", s, 63); err != nil {
		return err
	}
	for i, r := range s {
		alnum := r >= 'a' && r <= 'z' || r >= '0' && r <= '9'
		if !alnum && (r != '-' || i == 0 || i == len(s)-1) {
			return fault.Invalid("application name %q: it is a part of a host name: use lower-case letters, digits and dashes between them", s)
		}
	}
	return nil
}

func validateApp(a *typesv1.App, c *checker) {
	spec := a.GetSpec()
	c.check("spec.uri", validAppURI(spec.GetUri()))
	if addr := spec.GetPublicAddr(); addr != "" {
		c.check("spec.public_addr", validAppAddr(addr))
	}
	if spec.GetInsecureSkipVerify() && !strings.HasPrefix(spec.GetUri(), "https://") {
		c.add("spec.insecure_skip_verify", "only means something for https:// applications")
	}
	c.names("spec.required_apps", spec.GetRequiredApps(), ValidAppName)
	validateCommandLabels("spec.dynamic_labels", spec.GetDynamicLabels(), c)
	rewrite := spec.GetRewrite()
	switch rewrite.GetJwtClaims() {
	case "", JWTClaimsAll, JWTClaimsRoles, JWTClaimsTraits, JWTClaimsNone:
	default:
		c.add("spec.rewrite.jwt_claims", "unknown value %q: use %s, %s, %s or %s", rewrite.GetJwtClaims(), JWTClaimsAll, JWTClaimsRoles, JWTClaimsTraits, JWTClaimsNone)
	}
	c.names("spec.rewrite.redirect", rewrite.GetRedirect(), func(s string) error {
		if _, err := netip.ParseAddr(s); err == nil {
			return nil
		}
		return ValidHostname(s)
	})
	if len(rewrite.GetHeaders()) > maxList {
		c.add("spec.rewrite.headers", "%d headers, the most is %d", len(rewrite.GetHeaders()), maxList)
		return
	}
	for i, h := range rewrite.GetHeaders() {
		at := fmt.Sprintf("spec.rewrite.headers[%d]", i)
		c.check(at+".name", validRewrittenHeader(h.GetName()))
		c.check(at+".value", checkTemplate(h.GetValue(), validHeaderValue))
	}
	validateCORS("spec.cors", spec.GetCors(), c)
}

// validateCORS checks the policy of what other origins may do.
func validateCORS(path string, cors *typesv1.AppCORS, c *checker) {
	if cors == nil {
		return
	}
	c.names(path+".allowed_origins", cors.GetAllowedOrigins(), validOrigin)
	if cors.GetAllowCredentials() && slices.Contains(cors.GetAllowedOrigins(), Wildcard) {
		c.add(path+".allow_credentials", "goes with named origins only, and allowed_origins has '*'")
	}
	token := func(s string) error {
		if s == Wildcard || httpguts.ValidHeaderFieldName(s) {
			return nil
		}
		return fault.Invalid("%q is no HTTP name", s)
	}
	c.names(path+".allowed_methods", cors.GetAllowedMethods(), token)
	c.names(path+".allowed_headers", cors.GetAllowedHeaders(), token)
	c.names(path+".exposed_headers", cors.GetExposedHeaders(), token)
	if cors.GetMaxAge() > 86400 {
		c.add(path+".max_age", "%d seconds, the most is 86400", cors.GetMaxAge())
	}
}

func validOrigin(s string) error {
	if s == Wildcard {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Scheme+"://"+u.Host != s {
		return fault.Invalid("%q is no origin: write it like https://example.com", s)
	}
	return nil
}

// validRewrittenHeader refuses names whose value is ours or the protocol's to say.
func validRewrittenHeader(name string) error {
	if !httpguts.ValidHeaderFieldName(name) || len(name) > maxName {
		return fault.Invalid("%q is no name of a header", name)
	}
	switch canonical := http.CanonicalHeaderKey(name); {
	case canonical == "Teleport-Jwt-Assertion" || strings.HasPrefix(canonical, "X-Teleport-") || strings.HasPrefix(canonical, "X-Forwarded-"):
		return fault.Invalid("header %s says what Teleport knows of the request, and cannot be set here", canonical)
	case slices.Contains([]string{"Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Trailer", "Te", "Keep-Alive", "Proxy-Connection"}, canonical):
		return fault.Invalid("header %s is about the connection, and cannot be set here", canonical)
	}
	return nil
}

func validHeaderValue(s string) error {
	if len(s) > maxLabelValue || !httpguts.ValidHeaderFieldValue(s) {
		return fault.Invalid("%q is no value of a header: use at most %d bytes on one line", s, maxLabelValue)
	}
	return nil
}

// validAppAddr checks the host name that users reach an application at.
func validAppAddr(s string) error {
	if strings.Contains(s, "://") || strings.ContainsAny(s, "/:") {
		return fault.Invalid("%q: write a host name alone, such as grafana.example.com", s)
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return fault.Invalid("%q is an address: an application needs a host name of its own", s)
	}
	return ValidHostname(s)
}

func validAppURI(s string) error {
	if s == "" {
		return fault.Invalid("missing: say where the application is, such as http://localhost:8080")
	}
	u, err := url.Parse(s)
	if err != nil || len(s) > maxLabelValue {
		return fault.Invalid("%q is no URI: write it like http://localhost:8080", s)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "tcp":
		return fault.Invalid("%q: use http://, https:// or tcp://", s)
	case u.User != nil:
		return fault.Invalid("a user or password does not belong into the uri of an application: set the header Authorization by rewrite.headers")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return fault.Invalid("%q: a query or fragment does not belong into the uri of an application", s)
	case u.Hostname() == "":
		return fault.Invalid("%q names no host", s)
	case u.Scheme == "tcp" && (u.Port() == "" || u.Path != ""):
		return fault.Invalid("%q: write a TCP application like tcp://host:port", s)
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = "80"
	}
	return validAddr(net.JoinHostPort(host, port))
}

// AppLabels returns the labels of an application: its own and the results of its
// dynamic labels. A command cannot replace a label of its own.
func AppLabels(a *typesv1.App) map[string]string {
	return withResults(a.GetMetadata().GetLabels(), a.GetSpec().GetDynamicLabels())
}

// withResults returns static labels, and those of commands that are not among them.
func withResults(static map[string]string, commands map[string]*typesv1.CommandLabel) map[string]string {
	out := make(map[string]string, len(static)+len(commands))
	for k, c := range commands {
		out[k] = c.GetResult()
	}
	for k, v := range static {
		out[k] = v
	}
	return out
}

func appServerKind() KindInfo {
	return KindInfo{
		Name: KindAppServer, Plural: "app_servers",
		New: func() Resource { return &typesv1.AppServer{} },
		Defaults: defaults(func(s *typesv1.AppServer) {
			if s.Spec == nil {
				s.Spec = &typesv1.AppServerSpec{}
			}
		}),
		Validate: validate(func(s *typesv1.AppServer, c *checker) {
			spec := s.GetSpec()
			validateServed(s.GetMetadata().GetName(), spec.GetApp().GetMetadata().GetName(), spec.GetHostId(), spec.GetHostname(), c)
			c.text("spec.software_version", spec.GetSoftwareVersion(), maxName)
			c.text("spec.health", spec.GetHealth(), maxDescription)
			if err := Check(spec.GetApp()); err != nil {
				c.add("spec.app", "%v", err)
			}
		}),
		Columns: []Column{
			column("Application", func(s *typesv1.AppServer) string { return s.GetSpec().GetApp().GetMetadata().GetName() }),
			column("Host", func(s *typesv1.AppServer) string { return s.GetSpec().GetHostname() }),
			column("Public Address", func(s *typesv1.AppServer) string { return s.GetSpec().GetApp().GetSpec().GetPublicAddr() }),
			column("URI", func(s *typesv1.AppServer) string { return s.GetSpec().GetApp().GetSpec().GetUri() }),
			column("Labels", func(s *typesv1.AppServer) string { return labelText(AppServerLabels(s)) }),
			column("Version", func(s *typesv1.AppServer) string { return s.GetSpec().GetSoftwareVersion() }),
		},
		Served:   true,
		versions: []string{"v3"},
		name:     ValidName,
	}
}

// validateServed checks what an app_server and a db_server have in common.
func validateServed(name, resource, hostID, hostname string, c *checker) {
	c.check("spec.host_id", ValidName(hostID))
	c.check("spec.hostname", ValidHostname(hostname))
	if name != ServerName(resource, hostID) {
		c.add("metadata.name", "%q: expected %q", name, ServerName(resource, hostID))
	}
}

// AppServerLabels returns the labels that decide access to an application where the
// host serves it.
func AppServerLabels(s *typesv1.AppServer) map[string]string { return s.GetMetadata().GetLabels() }
