package tunnel

import "context"

// admits asks whether the host may have a tunnel.
func (s *Server) admits(hostID string) error {
	if s.cfg.Admit == nil {
		return nil
	}
	return s.cfg.Admit(hostID)
}

// Refused returns how many hosts have a tunnel although Admit refuses them by now.
func (s *Server) Refused() int {
	n := 0
	for _, id := range s.hosts() {
		if s.admits(id) != nil {
			n++
		}
	}
	return n
}

// hosts returns the hosts that have a tunnel.
func (s *Server) hosts() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	hosts := make([]string, 0, len(s.tunnels))
	for id := range s.tunnels {
		hosts = append(hosts, id)
	}
	return hosts
}

// Recheck closes the tunnels of the hosts that Admit refuses by now, and what goes
// through them. Call it when the answers of Admit may have changed.
func (s *Server) Recheck(ctx context.Context) {
	for _, id := range s.hosts() {
		err := s.admits(id)
		if err == nil {
			continue
		}
		s.mu.RLock()
		links := append([]*agentLink(nil), s.tunnels[id]...)
		s.mu.RUnlock()
		for _, l := range links {
			l.log.InfoContext(ctx, "closing the tunnel of a host that may not have one any more", "error", err)
			l.close()
		}
	}
}
