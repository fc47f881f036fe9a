package azure

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestBuiltInRoots: the roots are what they are said to be, and good for years to come.
func TestBuiltInRoots(t *testing.T) {
	roots, err := builtIn()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range roots {
		names = append(names, c.Subject.CommonName)
		// The oldest signed itself by SHA-1, which nobody looks at in a root.
		if !bytes.Equal(c.RawIssuer, c.RawSubject) || !c.IsCA {
			t.Errorf("%s: not a root", c.Subject)
		}
		if time.Now().Before(c.NotBefore) || time.Now().AddDate(1, 0, 0).After(c.NotAfter) {
			t.Errorf("%s: good until %s", c.Subject, c.NotAfter)
		}
	}
	want := "DigiCert Global Root CA, DigiCert Global Root G2, DigiCert Global Root G3, Microsoft ECC Root Certificate Authority 2017, Microsoft RSA Root Certificate Authority 2017"
	if got := strings.Join(names, ", "); got != want {
		t.Errorf("roots %s, want %s", got, want)
	}
}

func TestParseResource(t *testing.T) {
	const prefix = "/subscriptions/0000000b-0000-4000-8000-000000000001/resourceGroups/"
	for id, want := range map[string]string{
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node-1":                                                           "",
		"/SUBSCRIPTIONS/0000000B-0000-4000-8000-000000000001/resourcegroups/Nodes/PROVIDERS/microsoft.compute/VIRTUALMACHINES/node-1": prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node-1",
		prefix + "Gr(ü).n_1/providers/Microsoft.Compute/virtualMachineScaleSets/set":                                                  "",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachineScaleSets/set/virtualMachines/12":                                   "",
		prefix + "Nodes/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x":                                                 "",
		"": "-",
		prefix + "Nodes/providers/Microsoft.Compute/disks/x":                                        "-",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node-1/extensions/x":            "-",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node-1/":                        "-",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/":                               "-",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/..":                             "-",
		prefix + "../providers/Microsoft.Compute/virtualMachines/node-1":                            "-",
		prefix + "No%2fdes/providers/Microsoft.Compute/virtualMachines/node-1":                      "-",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node-1?api-version=x":           "-",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node-1#x":                       "-",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node 1":                         "-",
		prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/" + strings.Repeat("x", 91):     "-",
		"/subscriptions/x/resourceGroups/Nodes/providers/Microsoft.Compute/virtualMachines/node-1":  "-",
		"x" + prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node-1":                   "-",
		"https://example.com" + prefix + "Nodes/providers/Microsoft.Compute/virtualMachines/node-1": "-",
	} {
		r, err := parseResource(id)
		switch {
		case want == "-" && err == nil:
			t.Errorf("parseResource(%q) = %s, want an error", id, r)
		case want != "-" && err != nil:
			t.Errorf("parseResource(%q): %v", id, err)
		case want == "" && r.String() != id, want != "" && want != "-" && r.String() != want:
			t.Errorf("parseResource(%q) = %s", id, r)
		}
	}
}

// FuzzParseResource: what parses is written and read again as the same, and its address
// has no more parts than it.
func FuzzParseResource(f *testing.F) {
	f.Add("/subscriptions/0000000b-0000-4000-8000-000000000001/resourceGroups/Nodes/providers/Microsoft.Compute/virtualMachines/node-1")
	f.Add("/subscriptions/0000000b-0000-4000-8000-000000000001/resourceGroups/N/providers/Microsoft.Compute/virtualMachineScaleSets/s/virtualMachines/1")
	f.Add("/subscriptions/0000000b-0000-4000-8000-000000000001/resourceGroups/Grün/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x")
	f.Add("/subscriptions/../resourceGroups/%2e%2e/providers/")
	f.Fuzz(func(t *testing.T, id string) {
		r, err := parseResource(id)
		if err != nil {
			return
		}
		again, err := parseResource(r.String())
		if err != nil || again.String() != r.String() || !again.equal(r) {
			t.Fatalf("%q: %s, then %s, %v", id, r, again, err)
		}
		if got := r.url(); strings.Count(got, "/") != strings.Count(r.String(), "/") || strings.ContainsAny(got, "?#\\ \r\n") || strings.Contains(got, "/../") || strings.HasSuffix(got, "/..") {
			t.Fatalf("address %q", got)
		}
	})
}

func TestParseStamp(t *testing.T) {
	for in, want := range map[string]string{
		"11/28/18 00:16:17 -0000":   "2018-11-28T00:16:17Z",
		"1/2/26 03:04:05 +0100":     "2026-01-02T02:04:05Z",
		"11/28/2018 00:16:17 -0000": "2018-11-28T00:16:17Z",
		"28/11/18 00:16:17 -0000":   "",
		"2018-11-28T00:16:17Z":      "",
		"":                          "",
	} {
		got, ok := parseStamp(in)
		if ok != (want != "") || ok && stamp(got) != want {
			t.Errorf("parseStamp(%q) = %s, %v, want %q", in, stamp(got), ok, want)
		}
	}
	if _, ok := parseStamp(1); ok {
		t.Error("a number is a time")
	}
}
