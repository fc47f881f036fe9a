package client_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/types"
)

// A choice is sent as one query, and made once more here: a cluster that does not know
// queries sends everything.
func TestChoice(t *testing.T) {
	c := clienttest.Start(t)
	for id, labels := range map[string]map[string]string{
		"id-1": {"env": "prod", "note": `a "quoted" \ one`}, "id-2": {"env": "prod"}, "id-3": {"env": "test", "empty": ""},
	} {
		c.Resources.Put(&typesv1.Server{
			Kind: types.KindNode, Version: "v2", Metadata: &typesv1.Metadata{Name: id, Labels: labels}, Spec: &typesv1.ServerSpec{Hostname: "host-" + id},
		})
	}
	cl, err := client.New(client.Config{Proxy: c.Addr, Credentials: c.Credentials("alice", time.Hour, "root")})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := cl.Auth()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for name, tt := range map[string]struct {
		labels, query, search string
		narrow                string
		want                  []string
		sent                  string
	}{
		"all":      {want: []string{"id-1", "id-2", "id-3"}},
		"labels":   {labels: "env=prod", want: []string{"id-1", "id-2"}, sent: `exists(labels["env"]) && labels["env"] == "prod"`},
		"empty":    {labels: "empty=", want: []string{"id-3"}, sent: `exists(labels["empty"]) && labels["empty"] == ""`},
		"odd":      {search: "\"\"\\", want: []string{"id-1"}, sent: `search("", "\\")`},
		"query":    {query: `name == "host-id-2" || labels.env == "test"`, labels: "env=prod", want: []string{"id-2"}, sent: `(name == "host-id-2" || labels.env == "test") && exists(labels["env"]) && labels["env"] == "prod"`},
		"search":   {search: `HOST "id-3"`, want: []string{"id-3"}, sent: `search("HOST", "id-3")`},
		"narrowed": {labels: "env=prod", narrow: "ID-2", want: []string{"id-2"}, sent: `exists(labels["env"]) && labels["env"] == "prod" && search("ID-2")`},
		"too_long": {search: strings.Repeat("host ", 600), want: []string{"id-1", "id-2", "id-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			choice, err := client.NewChoice(types.KindNode, tt.labels, tt.query, tt.search)
			if err != nil {
				t.Fatal(err)
			}
			if tt.narrow != "" {
				choice = choice.Narrowed(tt.narrow)
			}
			servers, err := choice.Servers(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range servers {
				got = append(got, s.GetMetadata().GetName())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if sent := c.Resources.Query(); sent != tt.sent {
				t.Errorf("sent the query %q, want %q", sent, tt.sent)
			}
		})
	}
}
