package oidcfake

import (
	"net/http"
	"strconv"
	"time"
)

// GCP is the metadata service of one virtual machine of Google Compute Engine, as far
// as its identity goes. It speaks plain HTTP, as the real one.
type GCP struct {
	// Issuer signs the tokens; its URL is https://accounts.google.com.
	Issuer *Issuer
	Now    func() time.Time
	// Email is the service account of the machine; empty: it has none.
	Email string
	// Instance is google.compute_engine of the token. Nil leaves it out, as for a pod of
	// GKE with workload identity.
	Instance map[string]any
	// Claims replace others of the token.
	Claims map[string]any
	// NoFlavor leaves out the header by which the real service is known.
	NoFlavor bool
}

// GCPInstance returns the claim google.compute_engine of a machine.
func GCPInstance(project, zone, name string, id uint64) map[string]any {
	return map[string]any{
		"project_id": project, "project_number": 739419398126, "zone": zone, "instance_id": strconv.FormatUint(id, 10),
		"instance_name": name, "instance_creation_timestamp": 1718000000,
	}
}

// ServeHTTP answers requests for the identity token.
func (g *GCP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.NoFlavor {
		w.Header().Set("Metadata-Flavor", "Google")
	}
	if r.Header.Get("Metadata-Flavor") != "Google" {
		http.Error(w, "Missing Metadata-Flavor:Google header.", http.StatusForbidden)
		return
	}
	if r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/identity" || g.Email == "" {
		http.NotFound(w, r)
		return
	}
	audience := r.URL.Query().Get("audience")
	if audience == "" {
		http.Error(w, "non-empty audience parameter required", http.StatusBadRequest)
		return
	}
	now := g.Now()
	claims := map[string]any{
		"aud": audience, "azp": "104029292853099978293", "sub": "104029292853099978293", "email": g.Email, "email_verified": true,
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	if r.URL.Query().Get("format") == "full" && g.Instance != nil {
		claims["google"] = map[string]any{"compute_engine": g.Instance}
	}
	for name, v := range g.Claims {
		claims[name] = v
	}
	w.Header().Set("Content-Type", "text/html")
	_, _ = w.Write([]byte(g.Issuer.Mint(now, claims)))
}
