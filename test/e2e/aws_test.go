package e2e

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"teleport/test/awsfake"
	"teleport/test/netns"
)

// TestAWS runs the scripts of testdata/aws on a machine whose network is that of an
// EC2 instance: its metadata service has the role teleport-node-role of account
// 333333333333, and STS stands at its own name and port.
func TestAWS(t *testing.T) {
	t.Setenv("TELEPORT_BIN", binaries)
	hosts := map[string]string{"sts.eu-central-1.amazonaws.com": "127.0.0.1"}
	netns.Run(t, netns.Network{Addresses: []string{"169.254.169.254/32"}, Hosts: hosts}, func(t *testing.T) {
		key := awsfake.Key{
			ID: "ASIAIOSFODNN7EXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: "FwoGZXIvYXdzEBY+/=",
			Account: "333333333333", ARN: "arn:aws:sts::333333333333:assumed-role/teleport-node-role/i-0123456789abcdef0",
			UserID: "AROAIOSFODNN7EXAMPLE:i-0123456789abcdef0", Expires: time.Now().Add(time.Hour),
		}
		cloud := awsfake.New(t)
		cloud.Add(key)
		cloud.Serve(t, listenOn(t, "127.0.0.1:443"))
		metadata := &http.Server{
			Handler:           &awsfake.Metadata{Region: "eu-central-1", Role: "teleport-node-role", Key: key},
			ReadHeaderTimeout: time.Minute,
		}
		l := listenOn(t, "169.254.169.254:80")
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = metadata.Serve(l) // ends with Close
		}()
		t.Cleanup(func() {
			metadata.Close()
			<-served
		})
		roots := filepath.Join(t.TempDir(), "roots.pem")
		if err := os.WriteFile(roots, cloud.RootPEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Run("scripts", func(t *testing.T) {
			p := scripts("testdata/aws")
			p.Setup = func(env *testscript.Env) error {
				env.Setenv("SSL_CERT_FILE", roots)
				return setup(env)
			}
			testscript.Run(t, p)
		})
	})
}

func listenOn(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
