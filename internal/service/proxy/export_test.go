package proxy

// HasTunnel reports whether the host has a tunnel.
func (s *Service) HasTunnel(hostID string) bool { return s.tunnels.Connected(hostID) }
