package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/join"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/version"
)

// joiner is the machine's half of a join, made so that it takes little of the cores that
// the Auth Service is measured on: it has its keys already, does not check who it
// talks to, and makes no state of what it gets. Every join is over a connection of its own.
type joiner struct {
	addr string
	init *joinv1.Init
	// prove makes the proof of one machine.
	prove func(ctx context.Context, m method.Machine, question []byte) ([]byte, error)
	token string
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
}

// newJoiner returns a joiner for a token; the name of one that is no secret will do.
func newJoiner(addr, token string, m method.Method) (*joiner, error) {
	pair, err := join.NewKeyPair()
	if err != nil {
		return nil, err
	}
	return &joiner{
		addr: addr, token: token, dial: fromAnywhere,
		init: &joinv1.Init{
			Protocol: join.Protocol, TokenId: keys.TokenID(token), Roles: []string{"Node"}, Hostname: "joiner",
			TlsPublicKey: pair.TLSPublic, SshPublicKey: pair.SSHPublic, SoftwareVersion: version.Version,
		},
		prove: func(ctx context.Context, machine method.Machine, question []byte) ([]byte, error) {
			return m.Prove(machine)(ctx, question)
		},
	}, nil
}

// join joins once.
func (j *joiner) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	host, _, err := net.SplitHostPort(j.addr)
	if err != nil {
		return err
	}
	conn, err := rpc.Dial(rpc.DialConfig{Addr: j.addr, Dial: j.dial, Brief: true, TLS: &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: host, NextProtos: []string{mux.ALPNProxyGRPC, "h2"},
		InsecureSkipVerify: true,
	}})
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := joinv1.NewJoinServiceClient(conn).Join(ctx)
	if err != nil {
		return err
	}
	init := proto.CloneOf(j.init)
	init.Clock = timestamppb.Now()
	if err := stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Init{Init: init}}); err != nil {
		return refusal(stream, err)
	}
	machine := method.Machine{Token: j.token, Now: time.Now, Log: quiet(), Getenv: func(string) string { return "" }}
	for range method.MaxRounds {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if resp.GetResult() != nil {
			return nil
		}
		q := resp.GetQuestion()
		if q == nil {
			return fmt.Errorf("unexpected answer %T", resp.GetPayload())
		}
		if machine.Cluster == "" {
			machine.T, machine.Cluster, machine.Parameters = join.Transcript(init, q), q.GetClusterName(), q.GetChallenge()
		}
		proof, err := j.prove(ctx, machine, nil)
		if err != nil {
			return err
		}
		if err := stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Answer{Answer: &joinv1.Answer{Proof: proof}}}); err != nil {
			return refusal(stream, err)
		}
	}
	return errors.New("too many questions")
}

// refusal returns why a stream broke, which comes with Recv and not with Send.
func refusal(stream grpc.BidiStreamingClient[joinv1.JoinRequest, joinv1.JoinResponse], err error) error {
	if _, rerr := stream.Recv(); rerr != nil {
		return rerr
	}
	return err
}
