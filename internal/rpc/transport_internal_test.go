package rpc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/budget"
)

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"server"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// pipeConn is one end of a connection from an address, in memory.
type pipeConn struct {
	net.Conn
	addr string
}

func (c pipeConn) RemoteAddr() net.Addr { return (&addrConn{addr: c.addr}).RemoteAddr() }

// Handshakes take no turn while they wait for the other end, and their sources take
// turns when there is work to do.
func TestHandshakesTakeTurns(t *testing.T) {
	cert := selfSigned(t)
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}, nil)
		tr.turns = budget.NewTurns(1)
		finished := make(chan string, 64)
		var ends []net.Conn
		defer func() {
			for _, c := range ends {
				_ = c.Close()
			}
		}()
		connect := func(name, addr string) (start func()) {
			client, server := net.Pipe()
			ends = append(ends, client, server)
			go func() {
				conn, _, err := tr.ServerHandshake(pipeConn{server, addr})
				if err != nil {
					finished <- name + ": " + err.Error()
					return
				}
				finished <- name
				_, _ = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}()
			return func() {
				go func() {
					_ = tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
				}()
				synctest.Wait()
			}
		}
		// They connected and say nothing: nobody waits for them.
		for range 10 {
			connect("silent", "10.0.0.8:1")
		}
		synctest.Wait()
		if inside, _ := tr.turns.Count(); inside != 0 {
			t.Fatalf("%d turns are taken by handshakes that wait for the other end", inside)
		}
		if err := tr.turns.Enter(t.Context(), budget.Entry{Source: "test"}); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			connect("crowd", "10.0.0.9:1")()
		}
		connect("alone", "10.0.0.1:1")()
		if len(finished) != 0 {
			t.Fatal("a handshake went on without a turn")
		}
		tr.turns.Leave()
		synctest.Wait()
		at := 0
		for i := range 6 {
			switch name := <-finished; name {
			case "alone":
				at = i
			case "crowd":
			default:
				t.Error(name)
			}
		}
		if at > 1 {
			t.Errorf("%d of a crowd went before one of another address", at)
		}
		if inside, waiting := tr.turns.Count(); inside != 0 || waiting != 0 {
			t.Errorf("left behind: %d inside, %d waiting", inside, waiting)
		}
	})
}

// A stranger is an arrival until its first call, or for a moment.
func TestArrivals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport(nil, nil)
		arrive := func() *stranger {
			t.Helper()
			if err := tr.arrivals.Enter(t.Context(), budget.Entry{Source: "10.0.0.1"}); err != nil {
				t.Fatal(err)
			}
			conn := &addrConn{addr: "10.0.0.1:1"}
			s, err := tr.newStranger(conn, conn, sync.OnceFunc(tr.arrivals.Leave))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		for name, end := range map[string]func(*stranger){
			"first_call": func(s *stranger) { s.begin() },
			"closed":     func(s *stranger) { _ = s.Close() },
			"idle":       func(*stranger) { time.Sleep(arrivalTime); synctest.Wait() },
		} {
			s := arrive()
			if inside, _ := tr.arrivals.Count(); inside != 1 {
				t.Errorf("%s: %d arrivals before, want 1", name, inside)
			}
			end(s)
			if inside, _ := tr.arrivals.Count(); inside != 0 {
				t.Errorf("%s: %d arrivals after, want none", name, inside)
			}
			_ = s.Close()
		}
		time.Sleep(time.Minute)
	})
}

// Who waits for us does not have to make room.
func TestThoseInTurnKeepTheirPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(2, 2, time.Second)
		out := make([]bool, 2)
		guests := make([]*guest, 2)
		for i := range guests {
			guests[i] = &guest{source: "a", out: func() { out[i] = true }}
			r.enter(guests[i])
		}
		time.Sleep(time.Minute)
		guests[0].ours.Store(true)
		if !r.enter(&guest{source: "a", out: func() {}}) || out[0] || !out[1] {
			t.Errorf("had to go: %v, want only the one that does not wait for us", out)
		}
	})
}
