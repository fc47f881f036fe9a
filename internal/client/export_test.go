package client

import "time"

// SetPatience says how long the command has to end after a signal that asks for it.
func (s *Session) SetPatience(d time.Duration) { s.patience = d }
