package route

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

const (
	// another is how long an agent may take before the next one is asked as well: one
	// whose machine vanished is noticed only later.
	another = 2 * time.Second
	// maxAgents is how many agents are asked for one connection.
	maxAgents = 8
	// healthy is what an agent says of a target that answers.
	healthy = "healthy"
)

// DialResource connects to an agent that serves the application or database (service is
// types.RoleApp or types.RoleDB) and returns its host id. Several agents may serve one: of
// those that have a tunnel here one is taken by chance, where its target was found in good
// health if there is such, and the next if that one cannot be reached. What the caller may
// not see does not exist for it. The caller closes the connection.
func (r *Router) DialResource(ctx context.Context, caller *identity.Identity, service types.SystemRole, resource string, native bool, clientAddr string) (net.Conn, string, error) {
	hosts, err := r.FindResource(caller, service, resource)
	if err != nil {
		return nil, "", err
	}
	req := tunnel.Request{Service: service, ClientAddr: clientAddr, Resource: resource, Native: native}
	conn, host, err := r.dialAgents(ctx, hosts, req)
	if err != nil {
		return nil, "", fault.Unreachable("%s cannot be reached just now: %w", called(service, resource), err)
	}
	return conn, host, nil
}

// FindResource returns the hosts that serve the application or database to the caller and
// can be reached from here, in the order in which to try them.
func (r *Router) FindResource(caller *identity.Identity, service types.SystemRole, resource string) ([]string, error) {
	if caller == nil || caller.User == nil {
		return nil, fault.Denied("only users may connect to applications and databases")
	}
	if r.cfg.Cache.ClusterName().GetSpec().GetClusterName() == "" {
		return nil, fault.Unreachable("this Proxy has not heard from the Auth Service yet: try again")
	}
	agents, err := r.agents(caller, service, resource)
	if err != nil {
		return nil, err
	}
	if len(agents) == 0 {
		list := "tsh apps ls"
		if service == types.RoleDB {
			list = "tsh db ls"
		}
		return nil, fault.NotFound("there is no %s in this cluster that you may connect to: see `%s`", called(service, resource), list)
	}
	var well, ill []string
	var unusable error
	for _, a := range agents {
		if !r.cfg.Tunnels.Serves(a.host, service) {
			continue
		}
		if err := r.cfg.Usable(a.host); err != nil {
			unusable = err
			continue
		}
		if a.well {
			well = append(well, a.host)
		} else {
			ill = append(ill, a.host)
		}
	}
	hosts := append(mixed(well), mixed(ill)...)
	switch {
	case len(hosts) > 0:
		return hosts[:min(len(hosts), maxAgents)], nil
	case unusable != nil:
		return nil, unusable
	case len(agents) == 1:
		return nil, fault.Unreachable("the agent that serves %s, on %q, is not connected just now", called(service, resource), clip(agents[0].hostname))
	}
	return nil, fault.Unreachable("none of the %d agents that serve %s is connected just now", len(agents), called(service, resource))
}

// agent is a host that serves a resource.
type agent struct {
	host, hostname string
	// well says that the target was in good health when the agent last looked, or that it
	// does not say.
	well bool
}

// agents returns those that serve the resource to the caller, connected or not.
func (r *Router) agents(caller *identity.Identity, service types.SystemRole, resource string) ([]agent, error) {
	checker, now := r.checker(caller), r.cfg.Now()
	var out []agent
	add := func(res types.Resource, host, hostname, health string) {
		if !expired(res, now) && !r.cfg.Cache.Removed(host) && checker.SeesResource(res).Allowed {
			out = append(out, agent{host, hostname, health == "" || health == healthy})
		}
	}
	switch service {
	case types.RoleApp:
		if types.ValidAppName(resource) != nil {
			return nil, fault.Invalid("%q is no name of an application", clip(resource))
		}
		for _, s := range r.cfg.Cache.AppServersOf(resource) {
			add(s, s.GetSpec().GetHostId(), s.GetSpec().GetHostname(), s.GetSpec().GetHealth())
		}
	case types.RoleDB:
		if types.ValidDatabaseName(resource) != nil {
			return nil, fault.Invalid("%q is no name of a database", clip(resource))
		}
		for _, s := range r.cfg.Cache.DatabaseServersOf(resource) {
			add(s, s.GetSpec().GetHostId(), s.GetSpec().GetHostname(), s.GetSpec().GetHealth())
		}
	default:
		return nil, fault.Invalid("a Proxy connects to no resource of a service %q: expected %s or %s", clip(string(service)), types.RoleApp, types.RoleDB)
	}
	return out, nil
}

// called names a resource in messages.
func called(service types.SystemRole, resource string) string {
	if service == types.RoleDB {
		return "database \"" + clip(resource) + "\""
	}
	return "application \"" + clip(resource) + "\""
}

// mixed returns the hosts in an order of chance, which spreads the load over them.
func mixed(hosts []string) []string {
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] }) //nolint:gosec // nobody gains by guessing it
	return hosts
}

// dialAgents connects to the first of the hosts that takes the connection: the next one is
// asked when one refuses, or does not answer for a while.
func (r *Router) dialAgents(ctx context.Context, hosts []string, req tunnel.Request) (net.Conn, string, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type result struct {
		host string
		conn net.Conn
		err  error
	}
	results := make(chan result, len(hosts))
	patience := time.NewTicker(another)
	defer patience.Stop()
	asked, waiting := 0, 0
	ask := func() {
		patience.Reset(another)
		if asked == len(hosts) {
			return
		}
		host := hosts[asked]
		asked++
		waiting++
		go func() {
			conn, err := r.cfg.Tunnels.Dial(ctx, host, req)
			results <- result{host, conn, err}
		}()
	}
	var problems []string
	for ask(); waiting > 0; {
		select {
		case <-patience.C:
			ask()
		case got := <-results:
			waiting--
			if got.err != nil {
				problems = append(problems, got.err.Error())
				ask()
				continue
			}
			late := waiting
			go func() {
				for range late {
					if other := <-results; other.conn != nil {
						_ = other.conn.Close()
					}
				}
			}()
			return got.conn, got.host, nil
		}
	}
	return nil, "", errors.New(strings.Join(problems, "; "))
}
