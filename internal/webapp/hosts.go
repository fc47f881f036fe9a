package webapp

import (
	"strings"
	"sync"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/types"
)

// target is an application at one of its host names.
type target struct {
	name string
	// host is the name that the browser knows it by.
	host     string
	cors     *typesv1.AppCORS
	required []string
}

// hosts knows which application a host name means. An agent says what its applications
// are called, so it could claim the name of another one, or of the Proxy:
// <app>.<Proxy> always means the application of that name, other names under the
// Proxy's mean nothing, and a name that two applications claim stays with the one that had
// it alone before, or else belongs to neither.
type hosts struct {
	cache *cache.Cache
	proxy string

	mu      sync.Mutex
	byHost  map[string]target
	byName  map[string]target
	changed <-chan struct{}
}

// find returns the application at a host name, which is in lower case.
func (h *hosts) find(host string) (target, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refresh()
	t, ok := h.byHost[host]
	return t, ok && t.name != ""
}

// named returns the application of a name, at its main host name.
func (h *hosts) named(name string) (target, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refresh()
	t, ok := h.byName[name]
	return t, ok
}

// refresh reads the cache again if it changed.
func (h *hosts) refresh() {
	if h.changed != nil {
		select {
		case <-h.changed:
		default:
			return
		}
	}
	h.changed = h.cache.Changed(types.KindAppServer)
	before := h.byHost
	h.byHost, h.byName = map[string]target{}, map[string]target{}
	servers := h.cache.AppServers()
	for _, s := range servers {
		app := s.GetSpec().GetApp()
		t := target{
			name: app.GetMetadata().GetName(), cors: app.GetSpec().GetCors(), required: app.GetSpec().GetRequiredApps(),
		}
		t.host = t.name + "." + h.proxy
		h.byHost[t.host], h.byName[t.name] = t, t
	}
	claims := map[string]map[string]target{}
	for _, s := range servers {
		app := s.GetSpec().GetApp()
		addr, name := strings.ToLower(app.GetSpec().GetPublicAddr()), app.GetMetadata().GetName()
		if addr == "" || addr == h.proxy || strings.HasSuffix(addr, "."+h.proxy) {
			continue
		}
		t := h.byName[name]
		t.host = addr
		if claims[addr] == nil {
			claims[addr] = map[string]target{}
		}
		claims[addr][name] = t
	}
	for addr, by := range claims {
		owner, had := by[before[addr].name]
		if !had && len(by) == 1 {
			for _, owner = range by {
				had = true
			}
		}
		if had {
			h.byHost[addr] = owner
		}
	}
	for host, t := range h.byHost {
		if main := h.byName[t.name]; t.name != "" && main.host == t.name+"."+h.proxy {
			main.host = host
			h.byName[t.name] = main
		}
	}
}
