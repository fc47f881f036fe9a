package ssh

// Open returns how many connections of users are open, those that have logged in.
func (s *Service) Open() int { return s.live.Count() }

// Drain takes no new direct connections from now on; those that are open go on.
func (s *Service) Drain() {
	s.draining.Store(true)
	if s.cfg.Listener != nil {
		_ = s.cfg.Listener.Close()
	}
}
