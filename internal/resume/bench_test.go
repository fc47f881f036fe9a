package resume_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"syscall"
	"testing"
	"time"

	"teleport/internal/resume"
)

// tlsPair returns two ends of a TLS connection over loopback, as a path is one.
func tlsPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	server = tls.Server(accepted, &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true})
	client = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
	return client, server
}

// pairs returns the two ends of a path, bare and resumable.
func pairs(b *testing.B, resumable bool) (client, node net.Conn) {
	if !resumable {
		client, node = tlsPair(b)
	} else {
		s, err := resume.NewServer(resume.ServerConfig{Greeting: greeting})
		if err != nil {
			b.Fatal(err)
		}
		p, q := tlsPair(b)
		nodes := make(chan net.Conn, 1)
		go func() {
			c, _, err := s.Accept(q)
			if err != nil {
				b.Error(err)
			}
			nodes <- c
		}()
		o, err := resume.NewOffer()
		if err != nil {
			b.Fatal(err)
		}
		_, _ = p.Write(o.Line())
		if client, err = o.Accept(p, resume.ClientConfig{Redial: func(context.Context) (net.Conn, error) { return nil, errDown }}); err != nil {
			b.Fatal(err)
		}
		node = <-nodes
	}
	b.Cleanup(func() { _, _ = client.Close(), node.Close() })
	return client, node
}

func each(b *testing.B, run func(b *testing.B, client, node net.Conn)) {
	for name, resumable := range map[string]bool{"bare": false, "resumable": true} {
		b.Run(name, func(b *testing.B) {
			client, node := pairs(b, resumable)
			before := cpu(b)
			run(b, client, node)
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpu is the time that this process has spent on processors.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCopy writes what an SSH server writes of a big file.
func BenchmarkCopy(b *testing.B) {
	each(b, func(b *testing.B, client, node net.Conn) {
		const size = 128 << 10
		b.SetBytes(size)
		go func() {
			buf := make([]byte, 32<<10)
			for {
				if _, err := client.Read(buf); err != nil {
					return
				}
			}
		}()
		data := make([]byte, size)
		for b.Loop() {
			if _, err := node.Write(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkEcho is a keystroke and its echo.
func BenchmarkEcho(b *testing.B) {
	each(b, func(b *testing.B, client, node net.Conn) {
		go func() { _, _ = io.Copy(node, node) }()
		data := make([]byte, 64)
		for b.Loop() {
			if _, err := client.Write(data); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(client, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
