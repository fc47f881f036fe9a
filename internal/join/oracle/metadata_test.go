package oracle

import (
	"net"
	"net/http"
	"testing"

	"teleport/internal/join/egress"
	"teleport/internal/join/jointest"
	"teleport/test/netns"
	"teleport/test/ocifake"
)

// The metadata service is found at its true address, by a client that knows no other.
func TestMetadataAddress(t *testing.T) {
	netns.Run(t, netns.Network{Addresses: []string{"169.254.169.254"}}, func(t *testing.T) {
		w := &world{cloud: ocifake.New(t)}
		m := w.cloud.Issue(t, ocifake.Units(instanceID(1), compartment, tenancy), "", "")
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "169.254.169.254:80")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: ocifake.MetadataHandler(m)}
		go server.Serve(l)
		t.Cleanup(func() { server.Close() })
		s := w.setup(t, m)
		s.Machine.Metadata = egress.Metadata(egress.Config{})
		if _, err := jointest.Attempt(t.Context(), Method(), s, [32]byte{1}); err != nil {
			t.Fatal(err)
		}
	})
}
