package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
)

// Endpoint is where a forward begins or ends: a host and port, or the path of a Unix
// socket.
type Endpoint struct {
	Host string
	Port uint16
	Path string
}

// String returns host:port or the path.
func (e Endpoint) String() string {
	if e.Path != "" {
		return e.Path
	}
	return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
}

func (e Endpoint) network() string {
	if e.Path != "" {
		return "unix"
	}
	return "tcp"
}

// Forward is a listener at one end of a connection to a node, and where what connects
// to it is led to at the other end.
type Forward struct {
	// Remote listens at the node (ssh -R), otherwise here (ssh -L and -D).
	Remote bool
	// Listen is where; port 0 at the node is any.
	Listen Endpoint
	// To is where it leads; the zero value lets each connection say it by SOCKS 5.
	To Endpoint
}

// Socks reports whether each connection says where it leads.
func (f Forward) Socks() bool { return f.To == Endpoint{} }

// ParseForward reads what follows -L or -R: [bind:]port:host:port, with the path of a
// socket in the place of [bind:]port or host:port. Only a port with an optional bind
// address makes a SOCKS 5 server, as does what follows -D. IPv6 addresses stand in
// brackets. Without a bind address it is localhost.
func ParseForward(spec string, remote bool) (Forward, error) {
	f := Forward{Remote: remote}
	bad := fault.Invalid("%q: expected [bind:]port:host:port, with the absolute path of a socket in either place", spec)
	parts, err := splitSpec(spec)
	if err != nil {
		return f, bad
	}
	take := func(hostNeeded bool) (Endpoint, bool) {
		switch {
		case len(parts) == 0:
			return Endpoint{}, false
		case strings.HasPrefix(parts[0], "/"):
			e := Endpoint{Path: parts[0]}
			parts = parts[1:]
			return e, true
		}
		e := Endpoint{Host: "localhost"}
		if _, err := strconv.ParseUint(parts[0], 10, 16); err != nil || hostNeeded {
			e.Host, parts = parts[0], parts[1:]
		}
		if len(parts) == 0 {
			return e, false
		}
		n, err := strconv.ParseUint(parts[0], 10, 16)
		e.Port, parts = uint16(n), parts[1:]
		return e, err == nil
	}
	var ok bool
	if f.Listen, ok = take(false); !ok {
		return f, bad
	}
	if len(parts) > 0 {
		if f.To, ok = take(true); !ok || f.To.Path == "" && (f.To.Port == 0 || f.To.Host == "") {
			return f, bad
		}
	}
	if len(parts) > 0 || f.Socks() && f.Listen.Path != "" || f.Listen.Path == "" && f.Listen.Port == 0 && !remote {
		return f, bad
	}
	return f, nil
}

// splitSpec splits at colons outside brackets, and takes the brackets away.
func splitSpec(spec string) ([]string, error) {
	var parts []string
	for {
		part, rest, more := strings.Cut(spec, ":")
		if strings.HasPrefix(spec, "[") {
			inner, after, closed := strings.Cut(spec[1:], "]")
			if !closed || after != "" && after[0] != ':' {
				return nil, errors.New("brackets")
			}
			part, rest, more = inner, strings.TrimPrefix(after, ":"), after != ""
		}
		if part == "" && (len(parts) > 0 || !more) {
			return nil, errors.New("empty part")
		}
		parts = append(parts, part)
		if !more {
			return parts, nil
		}
		spec = rest
	}
}

// Forwarder runs forwards over one connection to a node.
type Forwarder struct {
	client *ssh.Client
	// note tells the user about something in one line.
	note func(string)

	mu        sync.Mutex
	listeners []net.Listener
	work      sync.WaitGroup
}

// NewForwarder returns a Forwarder; note is told about connections that fail.
func NewForwarder(client *ssh.Client, note func(string)) *Forwarder {
	return &Forwarder{client: client, note: note}
}

// Start opens the listener of a forward.
func (f *Forwarder) Start(fw Forward) error {
	listeners, err := f.listen(fw)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listeners = append(f.listeners, listeners...)
	for _, ln := range listeners {
		f.work.Go(func() { f.serve(ln, fw) })
	}
	return nil
}

func (f *Forwarder) listen(fw Forward) ([]net.Listener, error) {
	if !fw.Remote {
		return listenHere(fw.Listen)
	}
	ln, err := f.client.Listen(fw.Listen.network(), fw.Listen.String())
	if err != nil {
		return nil, fault.Denied("the node does not forward %s: the port is taken there, or your roles or the node do not allow it", fw.Listen)
	}
	if fw.Listen.Path == "" && fw.Listen.Port == 0 {
		f.note(fmt.Sprintf("the node forwards %s to %s", ln.Addr(), fw.target()))
	}
	return []net.Listener{ln}, nil
}

func (f Forward) target() string {
	if f.Socks() {
		return "where each connection says"
	}
	return f.To.String()
}

// listenHere opens a listener on this machine: localhost is both of its addresses.
func listenHere(at Endpoint) ([]net.Listener, error) {
	hosts := []string{at.Host}
	switch {
	case at.Path != "":
		old := umask()
		defer old()
		ln, err := net.Listen("unix", at.Path)
		if err != nil {
			return nil, fault.Invalid("cannot listen on %s: %w", at, err)
		}
		return []net.Listener{ln}, nil
	case at.Host == "localhost":
		hosts = []string{"127.0.0.1", "::1"}
	case at.Host == "*":
		hosts = []string{""}
	}
	var out []net.Listener
	for i, host := range hosts {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(at.Port))))
		if err != nil && i == 0 {
			return nil, fault.Invalid("cannot listen on %s: %w", at, err)
		}
		if err == nil {
			out = append(out, ln)
		}
	}
	return out, nil
}

// serve leads connections on until the listener is closed.
func (f *Forwarder) serve(ln net.Listener, fw Forward) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		f.work.Go(func() {
			defer func() { _ = conn.Close() }()
			if err := f.lead(conn, fw); err != nil {
				f.note(fmt.Sprintf("forward from %s: %v", fw.Listen, err))
			}
		})
	}
}

func (f *Forwarder) lead(conn net.Conn, fw Forward) error {
	to := fw.To
	if fw.Socks() {
		var err error
		if to, err = socksRequest(conn); err != nil {
			return err
		}
	}
	var peer net.Conn
	var err error
	if fw.Remote {
		peer, err = (&net.Dialer{Timeout: connectTimeout}).Dial(to.network(), to.String())
	} else {
		peer, err = f.client.Dial(to.network(), to.String())
	}
	if fw.Socks() {
		if errReply := socksReply(conn, err == nil); errReply != nil && err == nil {
			_ = peer.Close()
			return errReply
		}
	}
	if err != nil {
		return fmt.Errorf("connect to %s: %w", to, openError(err))
	}
	Splice(conn, peer)
	return nil
}

// openError returns what the node said about a channel that it did not open.
func openError(err error) error {
	var refused *ssh.OpenChannelError
	if errors.As(err, &refused) {
		return fault.Denied("%s", firstLine(refused.Message))
	}
	return err
}

// Close ends listeners and connections and waits for them; the connection to the node
// is closed too, since what is forwarded ends with it.
func (f *Forwarder) Close() {
	f.mu.Lock()
	for _, ln := range f.listeners {
		_ = ln.Close()
	}
	f.mu.Unlock()
	_ = f.client.Close()
}

// Splice copies both ways, passing the end of each on, and closes both.
func Splice(a, b io.ReadWriteCloser) {
	var copies sync.WaitGroup
	one := func(to, from io.ReadWriteCloser) {
		_, err := io.CopyBuffer(onlyWriter{to}, onlyReader{from}, make([]byte, relayBuffer))
		if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
			return
		}
		_ = to.Close()
		_ = from.Close()
	}
	copies.Go(func() { one(a, b) })
	copies.Go(func() { one(b, a) })
	copies.Wait()
	_ = a.Close()
	_ = b.Close()
}

// ForwardAgent answers the node's requests for the SSH agent with the one at the
// socket: bytes are passed on, nothing is interpreted.
func (f *Forwarder) ForwardAgent(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fault.Invalid("no SSH agent answers at %q ($SSH_AUTH_SOCK): start one, or leave out -A", socket)
	}
	_ = conn.Close()
	f.accept("auth-agent@openssh.com", func(ch ssh.Channel) {
		agent, err := net.Dial("unix", socket)
		if err != nil {
			_ = ch.Close()
			return
		}
		Splice(ch, agent)
	})
	return nil
}

// accept serves the channels of a type that the node opens.
func (f *Forwarder) accept(kind string, serve func(ssh.Channel)) {
	channels := f.client.HandleChannelOpen(kind)
	if channels == nil {
		return
	}
	f.work.Go(func() {
		for nc := range channels {
			ch, reqs, err := nc.Accept()
			if err != nil {
				continue
			}
			go ssh.DiscardRequests(reqs)
			f.work.Go(func() { serve(ch) })
		}
	})
}

// Wait returns when the connection to the node has ended, or ctx has.
func (f *Forwarder) Wait(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- f.client.Wait() }()
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, io.EOF) {
			return fault.Unreachable("the connection to the node has ended")
		}
		return fault.Unreachable("the connection to the node was lost: %w", err)
	case <-ctx.Done():
		return nil
	}
}

// AgentSocket returns the socket of the user's SSH agent.
func AgentSocket() (string, error) {
	if s := os.Getenv("SSH_AUTH_SOCK"); s != "" {
		return s, nil
	}
	return "", fault.Invalid("there is no SSH agent to forward: $SSH_AUTH_SOCK is not set")
}
