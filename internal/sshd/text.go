package sshd

import (
	"net"
	"strings"
)

func addrText(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// printable keeps what is safe on a terminal: names in messages come from peers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}

// printableLines is printable for text of several lines, each ended as terminals and
// RFC 4252 want it.
func printableLines(s string) string {
	var out strings.Builder
	for line := range strings.Lines(s) {
		out.WriteString(printable(strings.TrimRight(line, "\r\n")) + "\r\n")
	}
	return out.String()
}
