package ca_test

import (
	"crypto/x509"
	"testing"

	"teleport/internal/types"
)

func BenchmarkHost(b *testing.B) {
	w := newWorld(b, cluster)
	req := w.hostRequest(types.RoleNode)
	for b.Loop() {
		if _, _, err := w.signer.Host(req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUser(b *testing.B) {
	w := newWorld(b, cluster)
	req := w.userRequest()
	for b.Loop() {
		if _, _, err := w.signer.User(req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyTLS(b *testing.B) {
	w := newWorld(b, cluster)
	cert, _ := w.user(b, nil)
	for b.Loop() {
		if _, err := w.trust.VerifyTLS([]*x509.Certificate{cert}, w.now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifySSHUser(b *testing.B) {
	w := newWorld(b, cluster)
	_, cert := w.user(b, nil)
	for b.Loop() {
		if _, err := w.trust.VerifySSHUser(cert, "root", w.now); err != nil {
			b.Fatal(err)
		}
	}
}
