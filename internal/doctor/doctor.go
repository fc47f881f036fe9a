// Package doctor finds out why a process does not get into its cluster: it walks the
// way that a join takes, from the configuration to the rules of the token, one step
// after the other, and says of each whether it is good, broken or cannot be told, and
// what to do. It changes nothing and starts nothing; the last steps are a rehearsal,
// which package join makes.
package doctor

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/state"
	"teleport/internal/types"
)

// Status is what is known about a step.
type Status string

// What a step may be.
const (
	OK      Status = "ok"
	Broken  Status = "broken"
	Unknown Status = "unknown"
)

// Step is one step of the way into the cluster.
type Step struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail says what was found.
	Detail string `json:"detail"`
	// Fix says what to do; only a broken step has one.
	Fix string `json:"fix,omitempty"`
	// Code is the reason code of a refused join.
	Code string `json:"code,omitempty"`
}

// Report is what was found.
type Report struct {
	Steps []Step `json:"steps"`
	// FirstBroken is the name of the step to mend first, or empty.
	FirstBroken string `json:"first_broken,omitempty"`
}

// Broken returns the first broken step, or nil.
func (r *Report) Broken() *Step {
	if i := slices.IndexFunc(r.Steps, func(s Step) bool { return s.Status == Broken }); i >= 0 {
		return &r.Steps[i]
	}
	return nil
}

// Options say what to examine. Config and Rehearse are required.
type Options struct {
	Config *config.Config
	// Insecure: --insecure is given, so no certificate is verified.
	Insecure bool
	// Rehearse runs the join without changing anything.
	Rehearse func(context.Context) (*joinv1.Explanation, error)
	// Timeout bounds each step of the network; 0 is 5 seconds.
	Timeout time.Duration
	Now     func() time.Time
	Getenv  func(string) string
	// Lookup finds the addresses of a host.
	Lookup func(ctx context.Context, host string) ([]string, error)
}

const defaultTimeout = 5 * time.Second

// maxSkew is how far the clocks may be apart: that of a join.
const maxSkew = time.Minute

// finding is what one step found.
type finding struct {
	status            Status
	detail, fix, code string
}

func good(format string, args ...any) finding {
	return finding{status: OK, detail: fmt.Sprintf(format, args...)}
}

func unknown(format string, args ...any) finding {
	return finding{status: Unknown, detail: fmt.Sprintf(format, args...)}
}

func broken(fix, format string, args ...any) finding {
	return finding{status: Broken, detail: fmt.Sprintf(format, args...), fix: fix}
}

// examination is one run.
type examination struct {
	Options
	report Report

	// addr is where the cluster is; direct is true if that should be Auth itself.
	addr   string
	host   string
	port   string
	direct bool
	// holder is the identity that the data directory has, or nil.
	holder *state.Holder
	// join is why the process would join: no identity, or not the one it needs.
	join bool
	// pins are those of the configuration and of the token.
	pins []string
	// addrs are those of the host, reached the first that answered.
	addrs   []string
	reached string
	// presented is what it showed to a join, tunnel to a tunnel, or nil; date is what time
	// it is there.
	presented, tunnel *presented
	date              time.Time
}

// Examine walks all steps. It stops where going on makes no sense: what follows is
// unknown.
func Examine(ctx context.Context, o Options) *Report {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Lookup == nil {
		o.Lookup = net.DefaultResolver.LookupHost
	}
	x := &examination{Options: o, pins: slices.Clone(o.Config.CAPins)}
	f := x.configuration()
	x.add("configuration", f)
	if f.status == Broken {
		return x.done()
	}
	x.add("data directory", x.dataDirectory())
	x.add("identity", x.identity())
	if o.Config.Auth.Enabled {
		x.add("cluster", good("the Auth Service runs in this process: there is nobody to join"))
		return x.done()
	}
	token := x.token() // it may bring pins
	x.add("proxy settings", x.proxySettings())
	reachable := x.network(ctx)
	x.add("token", token)
	x.rehearse(ctx, reachable && token.status == OK)
	return x.done()
}

func (x *examination) add(name string, f finding) {
	x.report.Steps = append(x.report.Steps, Step{Name: name, Status: f.status, Detail: f.detail, Fix: f.fix, Code: f.code})
}

func (x *examination) done() *Report {
	if s := x.report.Broken(); s != nil {
		x.report.FirstBroken = s.Name
	}
	return &x.report
}

// network walks the steps between this machine and the cluster, up to the first that
// is broken.
func (x *examination) network(ctx context.Context) bool {
	stopped := ""
	for _, step := range []struct {
		name string
		try  func(context.Context) finding
	}{
		{"DNS", x.dns},
		{"TCP", x.tcp},
		{"TLS", x.tls},
		{"ALPN", x.alpn},
		{"balancer", x.balancer},
		{"clock", x.clock},
	} {
		if stopped != "" {
			x.add(step.name, unknown("not tried, as %s is broken", stopped))
			continue
		}
		f := step.try(ctx)
		x.add(step.name, f)
		if f.status == Broken {
			stopped = step.name
		}
	}
	return stopped == ""
}

// configuration is good, or nobody would have called; it says what was read.
func (x *examination) configuration() finding {
	c := x.Config
	from := "flags and defaults"
	if c.File() != "" {
		from = c.File()
	}
	x.addr = c.ProxyServer
	where := "proxy_server " + x.addr
	if x.addr == "" {
		x.addr, x.direct, where = c.AuthServer, true, "auth_server "+c.AuthServer
	}
	var err error
	if x.host, x.port, err = net.SplitHostPort(x.addr); err != nil && !c.Auth.Enabled {
		return broken("give teleport.proxy_server (or --proxy-server), HOST:PORT", "%s does not say where the cluster is", from)
	}
	if c.Auth.Enabled {
		where = "a cluster of its own"
	}
	remarks := ""
	for _, w := range c.Warnings {
		remarks += "; " + w
	}
	return good("%s: services %s; %s%s", from, roleList(x.roles()), where, remarks)
}

// roles are those that the configuration enables.
func (x *examination) roles() []types.SystemRole { return x.Config.Roles() }

func roleList(roles []types.SystemRole) string {
	out := make([]string, len(roles))
	for i, r := range roles {
		out[i] = string(r)
	}
	return strings.Join(out, ", ")
}

func flagList(roles []types.SystemRole) string {
	out := make([]string, len(roles))
	for i, r := range roles {
		out[i] = r.Flag()
	}
	return strings.Join(out, ",")
}

// proxyVariables are those that other programs are told of a forward proxy by.
func proxyVariables() []string {
	return []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"}
}

// proxySettings names what is set and not used.
func (x *examination) proxySettings() finding {
	set := slices.DeleteFunc(proxyVariables(), func(name string) bool { return x.Getenv(name) == "" })
	if len(set) == 0 {
		return good("none are set")
	}
	return good("%s is set and not used: Teleport connects to %s itself, without a forward proxy", strings.Join(set, ", "), x.addr)
}

// token looks whether there is one where one is needed.
func (x *examination) token() finding {
	value := x.Config.Join.TokenName
	if value == "" && x.join {
		return broken(fmt.Sprintf("make one with `tctl tokens add --type=%s`, and set teleport.join_params.token_name (or --token) to it", flagList(x.roles())),
			"none is configured, and this machine has to join")
	}
	if value == "" {
		return good("none is configured, and none is needed: the machine has its identity")
	}
	secret, err := config.ReadToken(value)
	if err != nil {
		if !x.join && !x.holder.Attests() {
			return good("%s; it is not needed, as the machine has its identity", err.Error())
		}
		return broken("correct teleport.join_params.token_name (or --token): the token, its name, or the absolute path of a file with it that this user may read", "%s", err.Error())
	}
	_, pins := config.SplitJoinString(secret)
	x.pins = append(x.pins, pins...)
	if w := config.TokenWarning(value); w != "" {
		return good("%s", w)
	}
	if !x.join {
		return good("there is one; it is not needed, as the machine has its identity")
	}
	return good("there is one")
}

// rehearse runs the exchange, whose checks are steps like the others.
func (x *examination) rehearse(ctx context.Context, sensible bool) {
	switch {
	case !sensible:
		x.add("join", unknown("not tried, as a step before it is broken"))
		return
	case !x.join && !x.holder.Attests():
		x.add("join", good("not tried: the machine has its identity, and renews it without a token"))
		return
	}
	e, err := x.Rehearse(ctx)
	if err != nil {
		x.add("join", finding{Broken, err.Error(), "the text says what to do; docs/reference/join-errors.md has more about each reason", fault.Code(err)})
		return
	}
	for _, c := range e.GetChecks() {
		f := good("%s", c.GetDetail())
		if !c.GetPassed() {
			f = finding{Broken, c.GetDetail() + ruleText(e.GetRules()), "the text says what to do; docs/reference/join-errors.md has more about each reason", e.GetCode()}
		}
		x.add("join: "+c.GetName(), f)
	}
	if len(e.GetChecks()) == 0 && e.GetCode() != "" {
		x.add("join", finding{Broken, e.GetMessage(), "docs/reference/join-errors.md has more about this reason", e.GetCode()})
	}
}

// ruleText says what each rule missed, if there are rules and none matches.
func ruleText(rules []*joinv1.Explanation_Rule) string {
	var out strings.Builder
	for _, r := range rules {
		if r.GetMatched() {
			return ""
		}
		for _, f := range r.GetFields() {
			if !f.GetMatched() {
				fmt.Fprintf(&out, "; %s: %s does not match %q", r.GetPath(), f.GetName(), f.GetGot())
			}
		}
	}
	return out.String()
}
