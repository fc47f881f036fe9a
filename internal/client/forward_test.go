package client_test

import (
	"testing"

	"teleport/internal/client"
)

func TestParseForward(t *testing.T) {
	ep := func(host string, port uint16) client.Endpoint { return client.Endpoint{Host: host, Port: port} }
	sock := func(path string) client.Endpoint { return client.Endpoint{Path: path} }
	for _, tt := range []struct {
		spec   string
		remote bool
		want   client.Forward
	}{
		{"8080:web:80", false, client.Forward{Listen: ep("localhost", 8080), To: ep("web", 80)}},
		{"127.0.0.2:8080:web:80", false, client.Forward{Listen: ep("127.0.0.2", 8080), To: ep("web", 80)}},
		{":8080:web:80", false, client.Forward{Listen: ep("", 8080), To: ep("web", 80)}},
		{"*:8080:web:80", false, client.Forward{Listen: ep("*", 8080), To: ep("web", 80)}},
		{"[::1]:8080:[2001:db8::1]:80", false, client.Forward{Listen: ep("::1", 8080), To: ep("2001:db8::1", 80)}},
		{"8080:[::1]:80", false, client.Forward{Listen: ep("localhost", 8080), To: ep("::1", 80)}},
		{"8080:10.0.0.1:80", false, client.Forward{Listen: ep("localhost", 8080), To: ep("10.0.0.1", 80)}},
		{"8080:123:80", false, client.Forward{Listen: ep("localhost", 8080), To: ep("123", 80)}},
		{"8080:/run/s", false, client.Forward{Listen: ep("localhost", 8080), To: sock("/run/s")}},
		{"bind:8080:/run/s", false, client.Forward{Listen: ep("bind", 8080), To: sock("/run/s")}},
		{"/tmp/s:web:80", false, client.Forward{Listen: sock("/tmp/s"), To: ep("web", 80)}},
		{"/tmp/s:/run/s", true, client.Forward{Remote: true, Listen: sock("/tmp/s"), To: sock("/run/s")}},
		{"1080", false, client.Forward{Listen: ep("localhost", 1080)}},
		{"127.0.0.1:1080", true, client.Forward{Remote: true, Listen: ep("127.0.0.1", 1080)}},
		{"0:web:80", true, client.Forward{Remote: true, Listen: ep("localhost", 0), To: ep("web", 80)}},
	} {
		got, err := client.ParseForward(tt.spec, tt.remote)
		if err != nil || got != tt.want {
			t.Errorf("ParseForward(%q) = %+v, %v, want %+v", tt.spec, got, err, tt.want)
		}
	}
	for _, spec := range []string{
		"", ":", "web", "8080:web", "8080:web:", "8080:web:0", "8080:web:99999", "99999:web:80", "0:web:80", "/tmp/s", "a:b:c:d:e",
		"8080:web:80:", "[::1:8080:web:80", "[::1]x:8080:web:80", "8080::80", "8080:web:80:81", "relative/s:web:80",
	} {
		if got, err := client.ParseForward(spec, false); err == nil {
			t.Errorf("ParseForward(%q) = %+v, want an error", spec, got)
		}
	}
}
