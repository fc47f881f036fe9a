package resume

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/retry"
)

const (
	// attachTimeout bounds one attempt to attach a new path, dialling included.
	attachTimeout = 20 * time.Second
	// hasty is how short a path must live for the next attempts to begin slowly.
	hasty = 5 * time.Second
	// maxForeign is how many lines a client reads before the node's answer.
	maxForeign = 4
)

// Event tells a person what becomes of the connection.
type Event struct {
	// Back says that the connection goes on; otherwise it was lost.
	Back bool
	// Err is why it was lost.
	Err error
	// Left is how long the node waits.
	Left time.Duration
	// After is how long the connection was lost.
	After time.Duration
}

// ClientConfig is what a client's connection needs.
type ClientConfig struct {
	// Redial opens a new path to the same node.
	Redial func(ctx context.Context) (net.Conn, error)
	// Final says whether an error of Redial will not go away; nil is never.
	Final func(err error) bool
	// Notify is told of losses; it may be nil and must not block.
	Notify func(Event)
}

// Offer is a client's wish for a connection that can be resumed, for one new path.
type Offer struct{ key *ecdh.PrivateKey }

// NewOffer makes one.
func NewOffer() (*Offer, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return &Offer{key}, nil
}

// Line is what has to be the first that the node gets; it may be sent before there is
// a node.
func (o *Offer) Line() []byte { return line(verbNew, encode(o.key.PublicKey().Bytes())) }

// ErrNotOffered is returned by Accept when the node may have taken offence at the
// offer: dial again without one.
var ErrNotOffered = errors.New("the node does not know connections that can be resumed")

// Accept reads the node's answer to the offer and returns the connection to go on with:
// a *Conn, or one like nc for plain SSH. Deadlines of nc are the caller's affair, and
// so is closing it if there is an error.
func (o *Offer) Accept(nc net.Conn, cfg ClientConfig) (net.Conn, error) {
	r := bufio.NewReader(nc)
	greeting, err := readLine(r)
	if err != nil {
		return nil, err
	}
	plain := &plainConn{Conn: nc, r: r, ahead: []byte(greeting + "\r\n")}
	if !speaks(greeting) {
		if tolerant(greeting) {
			return plain, nil
		}
		return nil, ErrNotOffered
	}
	answer, err := readLine(r)
	if err != nil {
		return nil, err
	}
	verb, words := split(answer)
	switch verb {
	case verbRefused:
		return plain, nil
	case verbNew:
	default:
		return nil, fault.Invalid("unexpected answer of the node")
	}
	key, err := parseNew(words)
	if err != nil {
		return nil, err
	}
	s, err := agree(o.key, key, o.key.PublicKey().Bytes(), key)
	if err != nil {
		return nil, err
	}
	c := newConn(s)
	c.client = &cfg
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attachLocked(nc, r, 0)
	return c, nil
}

// speaks reports whether an SSH identification has the mark in its comment.
func speaks(greeting string) bool {
	_, comment, ok := strings.Cut(greeting, " ")
	return ok && strings.HasPrefix(greeting, "SSH-") && comment == Mark
}

// tolerant reports whether the SSH server skips lines before the identification of
// its client.
func tolerant(greeting string) bool {
	return strings.HasPrefix(greeting, "SSH-2.0-Teleport") || strings.HasPrefix(greeting, "SSH-2.0-Go")
}

// redialLocked begins to look for a new path.
func (c *Conn) redialLocked(lost *path, why error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.keep)
	c.stopRedial = cancel
	c.lostAt = time.Now()
	if errors.Is(why, io.EOF) {
		why = errCut
	}
	go c.redial(ctx, cancel, time.Since(lost.since) < hasty, Event{Err: why, Left: c.keep})
}

// errCut is what an end that nobody announced means to a person.
var errCut = fault.Unreachable("it was closed on the way")

// redial tries until there is a new path, or until ctx ends.
func (c *Conn) redial(ctx context.Context, cancel context.CancelFunc, slow bool, lost Event) {
	defer cancel()
	c.notify(lost)
	pace := retry.Backoff{Min: 200 * time.Millisecond, Max: 3 * time.Second}
	if slow {
		pace.Min = time.Second
	}
	why := lost.Err
	for {
		if pace.Wait(ctx) != nil {
			c.fail(fault.Unreachable("the connection was lost and could not be resumed within %s: %w", lost.Left, why))
			return
		}
		err := c.attachOnce(ctx)
		switch {
		case err == nil:
			return
		case errors.Is(err, errGone):
			c.fail(fault.Unreachable("the connection was lost and cannot be resumed: the node has ended it or was started again"))
			return
		case errors.Is(err, errRefused):
			c.fail(fault.Denied("the connection was lost and the node refused to resume it: you may not log in there any more, or not from this address"))
			return
		case c.client.Final != nil && c.client.Final(err):
			c.fail(fmt.Errorf("the connection was lost and cannot be resumed: %w", err))
			return
		case ctx.Err() == nil:
			why = err
		}
	}
}

func (c *Conn) notify(e Event) {
	if c.client.Notify != nil {
		c.client.Notify(e)
	}
}

// fail ends the connection with the error, which is that of Read and Write.
func (c *Conn) fail(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(why)
}

// errRefused is the node's answer when its policy is against it.
var errRefused = errors.New("the node refused to resume the connection")

// attachOnce dials a new path and attaches it.
func (c *Conn) attachOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	nc, err := c.client.Redial(ctx)
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	_ = nc.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	r := bufio.NewReader(nc)
	a, err := c.askAgain(nc, r)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	c.mu.Lock()
	if err == nil && c.err != nil {
		err = c.err
	}
	if err == nil && (a.nodeReceived < c.taken || a.nodeReceived > c.sent) {
		err = fault.Invalid("the node says it received %d bytes of %d", a.nodeReceived, c.sent)
	}
	if err != nil {
		c.mu.Unlock()
		_ = nc.Close()
		return err
	}
	after := time.Since(c.lostAt)
	// Told before the next loss can be.
	c.mu.Unlock()
	c.notify(Event{Back: true, After: after})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.closing {
		_ = nc.Close()
		return c.err
	}
	//nolint:contextcheck // the connection outlives the call, and ends by Close
	c.attachLocked(nc, r, a.nodeReceived)
	return nil
}

// askAgain proves to the node that this is the client from before.
func (c *Conn) askAgain(nc net.Conn, r *bufio.Reader) (*attempt, error) {
	c.mu.Lock()
	c.attempt++
	a := &attempt{token: c.secrets.token, number: c.attempt, client: randomNonce(), clientReceived: c.received}
	c.mu.Unlock()
	if _, err := nc.Write(line(verbAgain, encode(a.token[:]), strconv.FormatUint(a.number, 10), encode(a.client[:]))); err != nil {
		return nil, err
	}
	if err := readNonce(r, a); err != nil {
		return nil, err
	}
	proof := a.fromClient(c.secrets)
	if _, err := nc.Write(append(binary.BigEndian.AppendUint64(nil, a.clientReceived), proof[:]...)); err != nil {
		return nil, err
	}
	// In place of the last answer there may be a line; it begins with another byte.
	if first, err := r.Peek(1); err != nil {
		return nil, err
	} else if first[0] == lineStart[0] {
		return nil, errGone
	}
	var answer [answerSize]byte
	if _, err := io.ReadFull(r, answer[:]); err != nil {
		return nil, unexpected(err)
	}
	a.status, a.nodeReceived = answer[0], binary.BigEndian.Uint64(answer[1:])
	if !a.fromNode(c.secrets).equal(answer[9:]) {
		return nil, fault.Unauthenticated("who answered is not the node that the connection was to")
	}
	if a.status != statusResumed {
		return nil, errRefused
	}
	return a, nil
}

// readNonce reads the node's answer to the line with the token. The identification of
// the SSH server comes before it.
func readNonce(r *bufio.Reader, a *attempt) error {
	for range maxForeign {
		text, err := readLine(r)
		if err != nil {
			return err
		}
		if strings.HasPrefix(text, "SSH-") && !speaks(text) {
			return errGone
		}
		switch verb, words := split(text); verb {
		case verbGone:
			return errGone
		case verbAgain:
			if len(words) != 1 {
				return fault.Invalid("%s: expected a nonce", verbAgain)
			}
			return decode(a.node[:], words[0])
		}
	}
	return fault.Invalid("the node did not answer")
}
