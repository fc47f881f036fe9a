package azure_test

import (
	"context"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/azure"
	"teleport/internal/join/egress"
	"teleport/internal/join/jointest"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/test/azurefake"
	"teleport/test/netns"
	"teleport/test/oidcfake"
	"teleport/test/openssl"
)

// bench makes attempts: one authority and one signer for all of them.
type bench struct {
	authority *azurefake.Authority
	signer    *openssl.Certificate
	roots     string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	a := azurefake.NewAuthority(t)
	return &bench{authority: a, signer: a.Signer(t, azurefake.Signers), roots: a.Root.File}
}

// attempt is a machine that is admitted.
func (b *bench) attempt(t *testing.T) (*azurefake.World, *jointest.Setup) {
	t.Helper()
	w := azurefake.New(t, b.authority, b.signer)
	return w, &jointest.Setup{
		Spec: &typesv1.TokenSpec{Azure: &typesv1.AzureJoin{Allow: []*typesv1.AzureRule{{
			Subscription: strings.ToUpper(w.Subscription), Tenant: w.Tenant, ResourceGroups: []string{"other", "nodes"},
		}}}},
		Machine: method.Machine{
			Metadata: egress.Metadata(egress.Config{Dial: w.DialMetadata(t)}), Egress: egress.New(egress.Config{Dial: w.DialMachine}),
		},
		Auth: egress.Config{Roots: w.Server().Roots, Dial: w.DialAuth},
		AuthEnv: func(name string) string {
			return map[string]string{azure.RootsVariable: b.roots}[name]
		},
	}
}

func nowhere(_ context.Context, _, addr string) (net.Conn, error) {
	return nil, errors.New("no way to " + addr)
}

// bad is a case that bends the world before its attempt.
func (b *bench) bad(name, code string, bend func(t *testing.T, w *azurefake.World, s *jointest.Setup)) jointest.Case {
	return jointest.Case{Name: name, Code: code, Bend: func(t *testing.T, s *jointest.Setup) {
		w, bent := b.attempt(t)
		bend(t, w, bent)
		*s = *bent
	}}
}

// document is a case with other members in the attested document, signed by Azure.
func (b *bench) document(name, code string, change func(map[string]any)) jointest.Case {
	return b.bad(name, code, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) { w.Document = change })
}

// claims is a case with other claims in the access token, signed by the tenant.
func (b *bench) claims(name, code string, change func(map[string]any)) jointest.Case {
	return b.bad(name, code, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) { w.Claims = change })
}

func TestSuite(t *testing.T) {
	b := newBench(t)
	jointest.Run(t, jointest.Rig{
		Method: azure.Method(jwt.NewIssuers()),
		Good: func(t *testing.T) *jointest.Setup {
			_, s := b.attempt(t)
			return s
		},
		Claims: map[string]string{"resource_group": "Nodes", "azure_environment": "AzurePublicCloud"},
		Bad:    slices.Concat(b.documents(), b.signers(t), b.tokens(), b.mixtures(), b.rules(), b.managers(), b.machines()),
	})
}

func (b *bench) documents() []jointest.Case {
	stamps := func(created, expires time.Duration) func(map[string]any) {
		return func(d map[string]any) {
			const layout = "01/02/06 15:04:05 -0700"
			d["timeStamp"] = map[string]any{
				"createdOn": time.Now().Add(created).UTC().Format(layout), "expiresOn": time.Now().Add(expires).UTC().Format(layout),
			}
		}
	}
	return []jointest.Case{
		b.document("expired", method.CodeProofExpired, stamps(-7*time.Hour, -time.Hour)),
		b.document("future", method.CodeProofNotYetValid, stamps(2*time.Minute, 6*time.Hour)),
		b.document("no time", method.CodeProofMalformed, func(d map[string]any) { delete(d, "timeStamp") }),
		b.document("another nonce", method.CodeProofAttempt, func(d map[string]any) { d["nonce"] = strings.Repeat("A", 32) }),
		b.document("a cut nonce", method.CodeProofAttempt, func(d map[string]any) { d["nonce"] = d["nonce"].(string)[:10] }),
		b.document("no nonce", method.CodeProofAttempt, func(d map[string]any) { delete(d, "nonce") }),
		b.document("vmId is no GUID", method.CodeProofMalformed, func(d map[string]any) { d["vmId"] = "node-1" }),
		b.document("no subscription", method.CodeProofMalformed, func(d map[string]any) { delete(d, "subscriptionId") }),
		b.bad("names twice", method.CodeProofMalformed, func(t *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Sign = func(content []byte) []byte {
				return w.Signer.SignCMS(t, append([]byte(`{"vmId":"another",`), content[1:]...))
			}
		}),
	}
}

func (b *bench) signers(t *testing.T) []jointest.Case {
	signedBy := func(name string, signer *openssl.Certificate, args ...string) jointest.Case {
		return b.bad(name, method.CodeProofSignature, func(t *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Sign = func(content []byte) []byte { return signer.SignCMS(t, content, args...) }
		})
	}
	issue := func(name string, extensions ...string) *openssl.Certificate {
		return b.authority.Sub.Issue(t, openssl.Spec{Subject: "/CN=" + name, Extensions: extensions})
	}
	// The one whose key is used has a certificate of the same authority, as anybody can.
	attacker := issue("attacker.example.com", azurefake.ServerExtensions("attacker.example.com")...)
	elsewhere := azurefake.NewAuthority(t)
	later := b.authority.Sub.Issue(t, openssl.Spec{
		Subject: "/CN=later", Extensions: azurefake.ServerExtensions(azurefake.Signers), NotBefore: time.Now().Add(time.Hour),
	})
	other := elsewhere.Signer(t, azurefake.Signers)
	return []jointest.Case{
		signedBy("bag trick", attacker, "-certfile", b.signer.File),
		signedBy("another server", attacker),
		signedBy("name in the common name only", issue(azurefake.Signers, azurefake.ServerExtensions("attacker.example.com")...)),
		signedBy("name at the wrong end", issue("x", azurefake.ServerExtensions("metadata.azure.com.example.com")...)),
		signedBy("name without a dot", issue("x", azurefake.ServerExtensions("evilmetadata.azure.com")...)),
		signedBy("not of a server", issue("x", "subjectAltName=DNS:"+azurefake.Signers, "extendedKeyUsage=clientAuth",
			"authorityInfoAccess=caIssuers;URI:"+azurefake.SubURL)),
		signedBy("of no stated use", issue("x", "subjectAltName=DNS:"+azurefake.Signers, "authorityInfoAccess=caIssuers;URI:"+azurefake.SubURL)),
		signedBy("an authority", issue("x", append(openssl.Authority(), "subjectAltName=DNS:"+azurefake.Signers, "extendedKeyUsage=serverAuth",
			"authorityInfoAccess=caIssuers;URI:"+azurefake.SubURL)...)),
		b.bad("not yet valid", method.CodeProofSignature, func(t *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Sign = func(content []byte) []byte { return later.SignCMS(t, content, "-noattr") }
		}),
		b.bad("another root", method.CodeProofSignature, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Authority, w.Signer = elsewhere, other
		}),
		b.bad("own root next to it", method.CodeProofSignature, func(t *testing.T, w *azurefake.World, _ *jointest.Setup) {
			bag := filepath.Join(t.TempDir(), "bag.pem")
			if err := os.WriteFile(bag, slices.Concat(elsewhere.Sub.PEM, elsewhere.Root.PEM), 0o600); err != nil {
				t.Fatal(err)
			}
			w.Sign = func(content []byte) []byte { return other.SignCMS(t, content, "-certfile", bag) }
		}),
		b.bad("two signers", method.CodeMetadata, func(t *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Sign = func(content []byte) []byte {
				return b.signer.SignCMS(t, content, "-signer", attacker.File, "-inkey", attacker.Key)
			}
		}),
		b.bad("roots file with something else", method.CodeProofSignature, func(_ *testing.T, _ *azurefake.World, s *jointest.Setup) {
			s.AuthEnv = func(string) string { return "/dev/null" }
		}),
		b.bad("roots file that is not there", method.CodeProofSignature, func(_ *testing.T, _ *azurefake.World, s *jointest.Setup) {
			s.AuthEnv = func(string) string { return "/nonexistent" }
		}),
	}
}

func (b *bench) tokens() []jointest.Case {
	now := time.Now()
	return []jointest.Case{
		b.claims("wrong_audience", method.CodeProofAudience, func(c map[string]any) { c["aud"] = "https://vault.azure.net/" }),
		b.claims("audience of another cloud", method.CodeProofAudience, func(c map[string]any) { c["aud"] = "https://management.usgovcloudapi.net/" }),
		b.claims("token expired", method.CodeProofExpired, func(c map[string]any) {
			c["iat"], c["exp"] = now.Add(-25*time.Hour).Unix(), now.Add(-time.Hour).Unix()
		}),
		b.claims("token of tomorrow", method.CodeProofNotYetValid, func(c map[string]any) { c["nbf"] = now.Add(time.Hour).Unix() }),
		b.claims("token for a month", method.CodeProofLifetime, func(c map[string]any) { c["exp"] = now.Add(30 * 24 * time.Hour).Unix() }),
		b.claims("tenant is no GUID", method.CodeProofMalformed, func(c map[string]any) { c["tid"] = "common/../" + c["tid"].(string) }),
		b.claims("no tenant", method.CodeProofMalformed, func(c map[string]any) { delete(c, "tid") }),
		b.claims("issuer of another tenant", method.CodeProofIssuer, func(c map[string]any) {
			c["iss"] = "https://sts.windows.net/00000000-0000-0000-0000-000000000000/"
		}),
		b.claims("issuer without its slash", method.CodeProofIssuer, func(c map[string]any) { c["iss"] = strings.TrimSuffix(c["iss"].(string), "/") }),
		b.claims("issuer of another cloud", method.CodeProofIssuer, func(c map[string]any) {
			c["iss"] = strings.Replace(c["iss"].(string), "sts.windows.net", "sts.chinacloudapi.cn", 1)
		}),
		b.claims("issuer of an attacker", method.CodeProofIssuer, func(c map[string]any) { c["iss"] = "https://attacker.example.com/" }),
		b.claims("token of a person", method.CodeProofMachine, func(c map[string]any) { delete(c, "xms_mirid") }),
		b.claims("token of something else", method.CodeProofMachine, func(c map[string]any) {
			c["xms_mirid"] = strings.Replace(c["xms_mirid"].(string), "Microsoft.Compute/virtualMachines", "Microsoft.Web/sites", 1)
		}),
		b.bad("token signed by another", method.CodeProofSignature, func(t *testing.T, w *azurefake.World, _ *jointest.Setup) {
			key := oidcfake.NewKey(t, "RS256")
			w.Mint = func(claims map[string]any) string {
				key.ID = w.Issuer.Key().ID
				text, err := json.Marshal(claims)
				if err != nil {
					t.Error(err)
				}
				return key.Sign(nil, text)
			}
		}),
		b.bad("token not signed", method.CodeProofMalformed, func(t *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Mint = func(claims map[string]any) string {
				text, err := json.Marshal(claims)
				if err != nil {
					t.Error(err)
				}
				return w.Issuer.Key().Sign(map[string]any{"alg": "none"}, text)
			}
		}),
	}
}

func (b *bench) mixtures() []jointest.Case {
	elsewhere := func(id string) string { return strings.Replace(id, "/node-1", "/node-2", 1) }
	return []jointest.Case{
		// The attested document of one machine with the token of another in one
		// subscription: both are good, and the resource manager tells.
		b.bad("document of one machine and token of another", method.CodeProofMachine, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Document = func(d map[string]any) { d["vmId"] = "0000000a-0000-4000-8000-ffffffffffff" }
		}),
		b.bad("token of another machine", method.CodeProofMachine, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Identity = elsewhere(w.Resource)
		}),
		b.bad("shared identity that runs another machine", method.CodeProofMachine, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Identity, w.Runs = userAssigned(w), elsewhere(w.Resource)
		}),
		b.bad("shared identity and the place of another machine", method.CodeProofMachine, func(_ *testing.T, w *azurefake.World, s *jointest.Setup) {
			w.Identity = userAssigned(w)
			s.Tamper = tamper(func(a map[string]any) { a["resource"] = elsewhere(w.Resource) })
			w.Manager = func(rw http.ResponseWriter, _ *http.Request) {
				w.Describe(rw, elsewhere(w.Resource), "0000000a-0000-4000-8000-ffffffffffff")
			}
		}),
		b.bad("place in another subscription", method.CodeProofMachine, func(_ *testing.T, w *azurefake.World, s *jointest.Setup) {
			s.Tamper = tamper(func(a map[string]any) {
				a["resource"] = strings.Replace(w.Resource, w.Subscription, "00000000-0000-0000-0000-000000000000", 1)
			})
		}),
		b.bad("place is not a machine", method.CodeProofMalformed, func(_ *testing.T, w *azurefake.World, s *jointest.Setup) {
			s.Tamper = tamper(func(a map[string]any) { a["resource"] = userAssigned(w) })
		}),
		b.bad("place with a way up", method.CodeProofMalformed, func(_ *testing.T, w *azurefake.World, s *jointest.Setup) {
			s.Tamper = tamper(func(a map[string]any) { a["resource"] = strings.Replace(w.Resource, "node-1", "..", 1) })
		}),
		b.bad("instance of another scale set", method.CodeProofMachine, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Resource, w.Identity = instance(w, "set-1", "0"), strings.TrimSuffix(instance(w, "set-2", "0"), "/virtualMachines/0")
		}),
	}
}

func (b *bench) rules() []jointest.Case {
	rule := func(name string, change func(*typesv1.AzureRule)) jointest.Case {
		return b.bad(name, method.CodeRuleMismatch, func(t *testing.T, w *azurefake.World, s *jointest.Setup) {
			change(s.Spec.Azure.Allow[0])
			w.Manager = func(http.ResponseWriter, *http.Request) {
				t.Error("the resource manager was asked about a machine that the rules do not want")
			}
		})
	}
	return []jointest.Case{
		rule("wrong_account", func(r *typesv1.AzureRule) { r.Subscription = "00000000-0000-0000-0000-000000000000" }),
		rule("another tenant", func(r *typesv1.AzureRule) { r.Tenant = "00000000-0000-0000-0000-000000000000" }),
		rule("another resource group", func(r *typesv1.AzureRule) { r.ResourceGroups = []string{"node"} }),
	}
}

func (b *bench) managers() []jointest.Case {
	status := func(name, code string, status int) jointest.Case {
		return b.bad(name, code, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Manager = func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(status) }
		})
	}
	says := func(name, code, text string) jointest.Case {
		return b.bad(name, code, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Manager = func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, text) }
		})
	}
	return []jointest.Case{
		b.bad("cloud_down", method.CodeCloudUnreachable, func(_ *testing.T, _ *azurefake.World, s *jointest.Setup) { s.Auth.Dial = nowhere }),
		b.bad("tenant down", method.CodeCloudUnreachable, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) { w.Issuer.SetDown(true) }),
		b.bad("tenant of another name", method.CodeProofIssuer, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Issuer.Document = func(d map[string]any) { d["issuer"] = "https://sts.windows.net/{tenantid}/" }
		}),
		b.bad("cloud_lies", method.CodeCloudRefused, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Manager = func(rw http.ResponseWriter, _ *http.Request) {
				w.Describe(rw, strings.Replace(w.Resource, "node-1", "node-2", 1), w.VMID)
			}
		}),
		says("manager babbles", method.CodeCloudRefused, "<html>"),
		says("manager says nothing", method.CodeCloudRefused, "{}"),
		status("manager forbids", method.CodeCloudRefused, http.StatusForbidden),
		status("manager does not know", method.CodeCloudRefused, http.StatusNotFound),
		status("manager is busy", method.CodeCloudUnreachable, http.StatusTooManyRequests),
		b.bad("manager redirects", method.CodeCloudUnreachable, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) {
			w.Manager = func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "https://login.microsoftonline.com/", http.StatusTemporaryRedirect)
			}
		}),
	}
}

func (b *bench) machines() []jointest.Case {
	metadata := func(name, code string, change func(*azurefake.World)) jointest.Case {
		return b.bad(name, code, func(_ *testing.T, w *azurefake.World, _ *jointest.Setup) { change(w) })
	}
	return []jointest.Case{
		b.bad("no metadata service", method.CodeMetadata, func(_ *testing.T, _ *azurefake.World, s *jointest.Setup) {
			s.Machine.Metadata = egress.Metadata(egress.Config{Dial: nowhere})
		}),
		metadata("unknown cloud", method.CodeMetadata, func(w *azurefake.World) { w.Environment = "AzureGermanCloud" }),
		metadata("not a machine", method.CodeMetadata, func(w *azurefake.World) { w.Resource = "" }),
		metadata("no identity", method.CodeCredentials, func(w *azurefake.World) { w.Identity = "" }),
		metadata("several identities", method.CodeCredentials, func(w *azurefake.World) { w.ClientID = "another" }),
		metadata("document is no document", method.CodeMetadata, func(w *azurefake.World) { w.Sign = func([]byte) []byte { return []byte("x") } }),
		metadata("certificate not published", method.CodeCredentials, func(w *azurefake.World) { w.Published = http.NotFound }),
		metadata("another certificate published", method.CodeMetadata, func(w *azurefake.World) {
			w.Published = func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(b.authority.Root.Raw) }
		}),
		b.bad("more certificates than may be", method.CodeProofMalformed, func(_ *testing.T, _ *azurefake.World, s *jointest.Setup) {
			s.Tamper = tamper(func(a map[string]any) { a["chain"] = []string{"AA==", "AA==", "AA==", "AA==", "AA=="} })
		}),
		b.bad("certificates that are none", method.CodeProofMalformed, func(_ *testing.T, _ *azurefake.World, s *jointest.Setup) {
			s.Tamper = tamper(func(a map[string]any) { a["chain"] = []string{"AA=="} })
		}),
		b.bad("no certificates", method.CodeProofSignature, func(_ *testing.T, _ *azurefake.World, s *jointest.Setup) {
			s.Tamper = tamper(func(a map[string]any) { delete(a, "chain") })
		}),
	}
}

// tamper changes the members of an answer.
func tamper(change func(map[string]any)) func([]byte) []byte {
	return func(answer []byte) []byte {
		var a map[string]any
		if json.Unmarshal(answer, &a) != nil {
			return answer
		}
		change(a)
		out, err := json.Marshal(a)
		if err != nil {
			return nil
		}
		return out
	}
}

func userAssigned(w *azurefake.World) string {
	return "/subscriptions/" + w.Subscription + "/resourcegroups/Shared/providers/Microsoft.ManagedIdentity/userAssignedIdentities/teleport"
}

func instance(w *azurefake.World, set, id string) string {
	return "/subscriptions/" + w.Subscription + "/resourceGroups/Nodes/providers/Microsoft.Compute/virtualMachineScaleSets/" + set + "/virtualMachines/" + id
}

// TestAdmitted: every kind of machine and identity.
func TestAdmitted(t *testing.T) {
	b := newBench(t)
	m := azure.Method(jwt.NewIssuers())
	gov, china := b.authority.Signer(t, "usgovvirginia.metadata.azure.us"), b.authority.Signer(t, "METADATA.azure.cn")
	for name, bend := range map[string]func(w *azurefake.World, s *jointest.Setup){
		"identity of the system": func(*azurefake.World, *jointest.Setup) {},
		"identity of the user": func(w *azurefake.World, s *jointest.Setup) {
			w.Identity, w.Runs = userAssigned(w), strings.ToLower(w.Resource)
			w.ClientID = "11111111-0000-0000-0000-000000000000"
			s.Machine.Settings = map[string]string{azure.ClientIDSetting: w.ClientID}
		},
		"identity of the user, token of old": func(w *azurefake.World, _ *jointest.Setup) { w.Identity = userAssigned(w) },
		"scale set": func(w *azurefake.World, _ *jointest.Setup) {
			w.Resource = instance(w, "set-1", "12")
			w.Identity = strings.TrimSuffix(w.Resource, "/virtualMachines/12")
		},
		"scale set with an identity of the user": func(w *azurefake.World, _ *jointest.Setup) {
			w.Resource = instance(w, "set-1", "12")
			w.Identity, w.Runs = userAssigned(w), strings.TrimSuffix(w.Resource, "/virtualMachines/12")
		},
		"token of version 2": func(w *azurefake.World, _ *jointest.Setup) {
			w.Issuer.URL = "https://login.microsoftonline.com/" + w.Tenant + "/v2.0"
		},
		"government": func(w *azurefake.World, _ *jointest.Setup) { w.Environment, w.Signer = "AzureUSGovernmentCloud", gov },
		"china": func(w *azurefake.World, _ *jointest.Setup) {
			w.Environment, w.Signer = "AzureChinaCloud", china
			w.Issuer.URL = "https://sts.chinacloudapi.cn/" + w.Tenant + "/"
		},
		"subscription only": func(w *azurefake.World, s *jointest.Setup) {
			s.Spec.Azure.Allow = []*typesv1.AzureRule{{Subscription: w.Subscription}}
		},
		"tenant only": func(w *azurefake.World, s *jointest.Setup) {
			s.Spec.Azure.Allow = []*typesv1.AzureRule{{Tenant: w.Tenant}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, s := b.attempt(t)
			bend(w, s)
			c, err := jointest.Attempt(t.Context(), m, s, [32]byte{1})
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{
				"subscription": w.Subscription, "tenant": w.Tenant, "vm_id": w.VMID, "resource_id": w.Resource, "resource_group": "Nodes",
				"azure_environment": w.Environment,
			} {
				if got := c.Get(name); got != want {
					t.Errorf("%s = %q, want %q", name, got, want)
				}
			}
			if want := "azure/" + w.Tenant + "/" + w.VMID; c.Machine != want {
				t.Errorf("Machine = %q, want %q", c.Machine, want)
			}
			for name, values := range c.Attributes {
				if slices.Contains(values, w.Token) {
					t.Errorf("attribute %s is the access token", name)
				}
			}
		})
	}
}

// TestClouds: the signer of one cloud with the token of another.
func TestClouds(t *testing.T) {
	b := newBench(t)
	gov := b.authority.Signer(t, "metadata.azure.us")
	w, s := b.attempt(t)
	w.Sign = func(content []byte) []byte { return gov.SignCMS(t, content) }
	if _, err := jointest.Attempt(t.Context(), azure.Method(jwt.NewIssuers()), s, [32]byte{}); fault.Code(err) != method.CodeProofAudience {
		t.Errorf("document of the government's cloud, token of the public one: %v, want code %s", err, method.CodeProofAudience)
	}
}

// TestPublishedElsewhere: the address of an issuer stands in a certificate that nobody
// has verified; the machine asks only where Microsoft publishes, and not for ever.
func TestPublishedElsewhere(t *testing.T) {
	b := newBench(t)
	for _, address := range []string{
		"http://169.254.169.254/metadata/identity/oauth2/token", "http://localhost/sub.crt", "http://www.microsoft.com.example.com/sub.crt",
		"http://www.microsoft.com:8080/sub.crt", "http://user@www.microsoft.com/sub.crt", "ldap://www.microsoft.com/sub.crt",
	} {
		signer := b.authority.Sub.Issue(t, openssl.Spec{Subject: "/CN=x", Extensions: []string{
			"subjectAltName=DNS:" + azurefake.Signers, "extendedKeyUsage=serverAuth", "authorityInfoAccess=caIssuers;URI:" + address,
		}})
		w, s := b.attempt(t)
		w.Signer = signer
		if _, err := jointest.Attempt(t.Context(), azure.Method(jwt.NewIssuers()), s, [32]byte{}); fault.Code(err) != method.CodeProofSignature {
			t.Errorf("%s: %v, want code %s", address, err, method.CodeProofSignature)
		}
		if asked := w.Asked(); len(asked) > 0 {
			t.Errorf("%s: somebody asked %q", address, asked)
		}
	}
}

// TestLoop: authorities that name each other as issuers, for ever.
func TestLoop(t *testing.T) {
	b := newBench(t)
	at := func(path string) []string {
		return append(openssl.Authority(), "authorityInfoAccess=caIssuers;URI:http://www.microsoft.com"+path)
	}
	// Two authorities with crossed names: A1 is by B, B1 by A, each with the key of the other.
	a := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=A", Extensions: openssl.Authority()})
	bb := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=B", Extensions: openssl.Authority()})
	a1 := cross(t, a, bb, at("/b"))
	b1 := cross(t, bb, a, at("/a"))
	w, s := b.attempt(t)
	w.Signer = a.Issue(t, openssl.Spec{Subject: "/CN=x", Extensions: []string{
		"subjectAltName=DNS:" + azurefake.Signers, "extendedKeyUsage=serverAuth", "authorityInfoAccess=caIssuers;URI:http://www.microsoft.com/a",
	}})
	w.Published = func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/a" {
			_, _ = rw.Write(a1.Raw)
		} else {
			_, _ = rw.Write(b1.Raw)
		}
	}
	if _, err := jointest.Attempt(t.Context(), azure.Method(jwt.NewIssuers()), s, [32]byte{}); fault.Code(err) != method.CodeMetadata || !strings.Contains(err.Error(), "more than 4") {
		t.Errorf("a loop: %v, want code %s", err, method.CodeMetadata)
	}
	if n := len(w.Asked()); n != 4 {
		t.Errorf("the machine fetched %d certificates, want 4", n)
	}
}

// cross makes a certificate with the name and key of c, issued by another.
func cross(t *testing.T, c, by *openssl.Certificate, extensions []string) *openssl.Certificate {
	t.Helper()
	return by.Issue(t, openssl.Spec{Subject: "/CN=" + c.Subject.CommonName, Extensions: extensions, Key: c.Key})
}

// TestRefusedClaims: a refusal comes with what was verified, and what the machine only
// says about itself is none of it.
func TestRefusedClaims(t *testing.T) {
	b := newBench(t)
	w, s := b.attempt(t)
	w.Identity = userAssigned(w)
	w.Manager = func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusForbidden) }
	c, err := jointest.Attempt(t.Context(), azure.Method(jwt.NewIssuers()), s, [32]byte{})
	if err == nil || c.Get("vm_id") != w.VMID || c.Get("tenant") != w.Tenant {
		t.Errorf("claims %v, error %v", c.Attributes, err)
	}
	if c.Attributes["resource_group"] != nil || c.Attributes["resource_id"] != nil {
		t.Errorf("claims %v have what nobody confirmed", c.Attributes)
	}
	if strings.Contains(err.Error(), w.Token) {
		t.Error("the error has the access token")
	}
}

// TestDigestOfAzure: Azure's documents name an algorithm of signatures where that of a
// digest belongs.
func TestDigestOfAzure(t *testing.T) {
	b := newBench(t)
	w, s := b.attempt(t)
	w.Sign = func(content []byte) []byte { return quirk(t, b.signer.SignCMS(t, content)) }
	if _, err := jointest.Attempt(t.Context(), azure.Method(jwt.NewIssuers()), s, [32]byte{}); err != nil {
		t.Error(err)
	}
}

// quirk replaces the digest algorithm of the signer (the second one that stands in a
// document) by sha256WithRSAEncryption, and mends the lengths around it.
func quirk(t *testing.T, document []byte) []byte {
	t.Helper()
	var outer struct {
		Type    asn1.ObjectIdentifier
		Content struct {
			Version                             int
			Digests, Encapsulated, Certificates asn1.RawValue
			Signers                             []struct {
				Version    int
				Identifier asn1.RawValue
				Digest     struct{ Algorithm asn1.ObjectIdentifier }
				Attributes asn1.RawValue
				Algorithm  asn1.RawValue
				Signature  []byte
			} `asn1:"set"`
		} `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(document, &outer); err != nil {
		t.Fatal(err)
	}
	outer.Content.Signers[0].Digest.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	out, err := asn1.Marshal(outer)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTrueAddress: the metadata service at the address where machines have it, in a
// network where there is nothing else.
func TestTrueAddress(t *testing.T) {
	netns.Run(t, netns.Network{Addresses: []string{"169.254.169.254/32"}}, func(t *testing.T) {
		w, s := newBench(t).attempt(t)
		l, err := net.Listen("tcp", "169.254.169.254:80")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: w, ReadHeaderTimeout: time.Minute}
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		defer func() {
			server.Close()
			<-done
		}()
		s.Machine.Metadata = egress.Metadata(egress.Config{})
		if c, err := jointest.Attempt(t.Context(), azure.Method(jwt.NewIssuers()), s, [32]byte{}); err != nil || c.Get("vm_id") != w.VMID {
			t.Errorf("claims %v, error %v", c.Attributes, err)
		}
	})
}
