package sshd_test

import "testing"

// BenchmarkOpenSSHTrue is the latency of `ssh host true` with the stock client.
func BenchmarkOpenSSHTrue(b *testing.B) {
	w := start(b, nil)
	for b.Loop() {
		if out, err := w.openssh("true").CombinedOutput(); err != nil {
			b.Fatalf("ssh true: %v: %s", err, out)
		}
	}
}
