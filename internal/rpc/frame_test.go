package rpc_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/fault"
	"teleport/internal/rpc"
)

func TestFrame(t *testing.T) {
	var buf bytes.Buffer
	want := &proxyv1.DialRequest{Host: "node", Port: 3022, Cluster: "c"}
	if err := rpc.WriteFrame(&buf, want); err != nil {
		t.Fatal(err)
	}
	buf.WriteString("user bytes")
	got := &proxyv1.DialRequest{}
	if err := rpc.ReadFrame(&buf, got, rpc.MaxFrame); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if buf.String() != "user bytes" {
		t.Errorf("left = %q, want the user's bytes untouched", buf.String())
	}
}

func TestReadFrameRefuses(t *testing.T) {
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"empty", nil, io.EOF},
		{"half_a_length", []byte{0, 0}, io.ErrUnexpectedEOF},
		{"length_without_body", []byte{0, 0, 0, 5}, io.ErrUnexpectedEOF},
		{"cut_body", []byte{0, 0, 0, 5, 1}, io.ErrUnexpectedEOF},
		{"huge", []byte{0xff, 0xff, 0xff, 0xff}, fault.ErrLimit},
		{"one_over_the_limit", append([]byte{0, 0, 0, 17}, make([]byte, 17)...), fault.ErrLimit},
		{"not_protobuf", []byte{0, 0, 0, 1, 0xff}, fault.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := rpc.ReadFrame(bytes.NewReader(tt.in), &proxyv1.DialRequest{}, 16); !errors.Is(err, tt.want) {
				t.Errorf("ReadFrame = %v, want %v", err, tt.want)
			}
		})
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3, 10, 1, 'x'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		m := &proxyv1.DialRequest{}
		if err := rpc.ReadFrame(bytes.NewReader(in), m, 1024); err != nil {
			return
		}
		var buf bytes.Buffer
		if err := rpc.WriteFrame(&buf, m); err != nil {
			t.Fatal(err)
		}
		again := &proxyv1.DialRequest{}
		if err := rpc.ReadFrame(&buf, again, 2048); err != nil {
			t.Fatalf("frame written by us is refused: %v", err)
		}
	})
}
