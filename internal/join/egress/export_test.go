package egress

// PublicOnly is publicOnly for tests: what it allows is not to be dialled in them.
func PublicOnly(address string) error { return publicOnly("", address, nil) }
