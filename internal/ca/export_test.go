package ca

// The last looks at a certificate, for tests of what they would stop.
var (
	CheckTLS = checkTLS
	CheckSSH = checkSSH
)
