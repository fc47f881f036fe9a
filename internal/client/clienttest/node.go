package clienttest

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	proxyv1 "teleport/api/proxy/v1"
)

// Node is an SSH server with a few commands of its own:
//
//	true        exit code 0
//	exit N      exit code N
//	cat         standard input to standard output
//	errout TEXT TEXT to standard error
//	signal      waits for a signal and ends by it
//	drop        closes the connection
//
// Whatever host a client forwards to is this server again. Anything else is written
// back. The sftp subsystem serves this machine's files, relative
// names in Dir. A shell writes its terminal's type and size, then
// each new size, until standard input ends.
type Node struct {
	// Dir is where relative names of SFTP begin; NoSFTP refuses the subsystem.
	Dir    string
	NoSFTP bool

	c        *Cluster
	signer   ssh.Signer
	mu       sync.Mutex
	requests []*proxyv1.DialRequest
	logins   []string
}

func (n *Node) add(req *proxyv1.DialRequest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.requests = append(n.requests, proto.CloneOf(req))
}

// Requests returns the DialRequests so far.
func (n *Node) Requests() []*proxyv1.DialRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*proxyv1.DialRequest(nil), n.requests...)
}

// Logins returns the users logged in as so far.
func (n *Node) Logins() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.logins...)
}

func (n *Node) serve(conn net.Conn) {
	conf := &ssh.ServerConfig{
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if _, err := n.c.Trust.VerifySSHUser(key, meta.User(), time.Now()); err != nil {
				return nil, err
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			return &ssh.Permissions{}, nil
		},
	}
	conf.AddHostKey(n.signer)
	server, chans, reqs, err := ssh.NewServerConn(conn, conf)
	if err != nil {
		return
	}
	n.mu.Lock()
	n.logins = append(n.logins, server.User())
	n.mu.Unlock()
	go ssh.DiscardRequests(reqs)
	for newChannel := range chans {
		ch, requests, err := newChannel.Accept()
		if err != nil {
			return
		}
		if newChannel.ChannelType() == "direct-tcpip" {
			go ssh.DiscardRequests(requests)
			go n.serve(channelConn{ch, conn})
			continue
		}
		go n.session(server, ch, requests)
	}
}

// channelConn is a channel as a connection.
type channelConn struct {
	ssh.Channel
	net.Conn
}

// Read, Write and Close are the channel's.
func (c channelConn) Read(p []byte) (int, error)  { return c.Channel.Read(p) }
func (c channelConn) Write(p []byte) (int, error) { return c.Channel.Write(p) }
func (c channelConn) Close() error                { return c.Channel.Close() }

type ptyRequest struct {
	Term                         string
	Width, Height, WidthP, HighP uint32
	Modes                        string
}

func (n *Node) session(server *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
	var pty ptyRequest
	signals := make(chan string, 1)
	for req := range requests {
		ok, then := true, func() {}
		switch req.Type {
		case "pty-req":
			ok = ssh.Unmarshal(req.Payload, &pty) == nil
		case "shell":
			then = func() { shell(ch, pty) }
		case "exec":
			var cmd struct{ Line string }
			ok = ssh.Unmarshal(req.Payload, &cmd) == nil
			if cmd.Line == "silence" {
				continue // it is not even answered
			}
			then = func() { execute(server, ch, cmd.Line, signals) }
		case "subsystem":
			ok = !n.NoSFTP
			then = func() { n.sftp(ch) }
		case "window-change":
			var size struct{ Width, Height, WidthP, HighP uint32 }
			_ = ssh.Unmarshal(req.Payload, &size)
			_, _ = fmt.Fprintf(ch, "size %dx%d\n", size.Width, size.Height)
		case "signal":
			var sig struct{ Name string }
			_ = ssh.Unmarshal(req.Payload, &sig)
			signals <- sig.Name
		default:
			ok = false
		}
		_ = req.Reply(ok, nil)
		if ok {
			go then()
		}
	}
}

func (n *Node) sftp(ch ssh.Channel) {
	server, err := sftp.NewServer(ch, sftp.WithServerWorkingDirectory(n.Dir))
	if err == nil {
		_ = server.Serve()
	}
	exit(ch, 0)
}

func shell(ch ssh.Channel, pty ptyRequest) {
	_, _ = fmt.Fprintf(ch, "pty %s %dx%d\n", pty.Term, pty.Width, pty.Height)
	_, _ = io.Copy(ch, ch)
	exit(ch, 0)
}

func execute(server *ssh.ServerConn, ch ssh.Channel, line string, signals <-chan string) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "true":
		exit(ch, 0)
	case "exit":
		code, _ := strconv.ParseUint(rest, 10, 8)
		exit(ch, uint32(code))
	case "cat":
		_, _ = io.Copy(ch, ch)
		exit(ch, 0)
	case "errout":
		_, _ = fmt.Fprintln(ch.Stderr(), rest)
		exit(ch, 0)
	case "signal":
		_, _ = fmt.Fprintln(ch, "ready")
		message := struct {
			Name       string
			CoreDumped bool
			Error      string
			Lang       string
		}{Name: <-signals}
		_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(message))
		_ = ch.Close()
	case "drop":
		_ = server.Close()
	default:
		_, _ = fmt.Fprintln(ch, line)
		exit(ch, 0)
	}
}

func exit(ch ssh.Channel, code uint32) {
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code}))
	_ = ch.Close()
}
