package join

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/fault"
)

// FuzzInit takes whatever a stranger may send first: it is refused with a reason
// code, or it is a request whose parts are within their limits.
func FuzzInit(f *testing.F) {
	now := time.Unix(1_795_000_000, 0)
	pair, err := NewKeyPair()
	if err != nil {
		f.Fatal(err)
	}
	good := &joinv1.Init{
		Protocol: Protocol, TokenId: "0123456789abcdef01234567", Roles: []string{"Node", "proxy"}, Hostname: "web-1",
		TlsPublicKey: pair.TLSPublic, SshPublicKey: pair.SSHPublic, Principals: []string{"proxy.example.com", "10.0.0.1"},
		Clock: timestamppb.New(now), SoftwareVersion: "1.0.0", Current: &joinv1.HostProof{Certificate: []byte{1}},
	}
	for _, edit := range []func(*joinv1.Init){
		func(*joinv1.Init) {},
		func(i *joinv1.Init) { i.Hostname = "-" },
		func(i *joinv1.Init) { i.Clock = &timestamppb.Timestamp{Seconds: -1 << 62, Nanos: -1} },
		func(i *joinv1.Init) { i.Roles = make([]string, 100) },
		func(i *joinv1.Init) { i.TlsPublicKey = pair.SSHPublic },
	} {
		i := proto.CloneOf(good)
		edit(i)
		raw, err := proto.Marshal(i)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		init := &joinv1.Init{}
		if proto.Unmarshal(raw, init) != nil {
			return
		}
		r, err := checkInit(init, now)
		if err != nil {
			if fault.Code(err) == "" || fault.Kind(err) == nil {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		if len(r.roles) == 0 || len(r.init.GetHostname()) > maxPrincipal || len(r.init.GetPrincipals()) > maxPrincipals {
			t.Fatalf("admitted %v", init)
		}
		a, b := transcript(init, &joinv1.Question{Nonce: []byte{1}}), transcript(init, &joinv1.Question{Challenge: []byte{1}})
		if a == b {
			t.Fatal("two questions have one transcript")
		}
	})
}
