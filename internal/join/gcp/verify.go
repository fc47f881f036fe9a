package gcp

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
)

// issuer signs the identity tokens of all of Google's machines.
const issuer = "https://accounts.google.com"

// lifetime of these tokens is one hour.
const lifetime = time.Hour

type verifier struct{ issuers *jwt.Issuers }

// verify is Auth's half.
func (v verifier) verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	token, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	c, err := jwt.Verify(ctx, string(token), v.issuers.Keys(a.Egress, jwt.Source{Issuer: issuer}), jwt.Expect{
		Issuer: issuer, Audience: audience(a.Cluster, a.T), Now: a.Now, Leeway: jwt.Leeway, MaxLifetime: lifetime,
	})
	if c.Raw == nil {
		return method.Claims{}, err
	}
	claims, problem := read(c)
	if err != nil {
		return claims, err
	}
	return claims, problem
}

// read turns the claims of Google into attributes. The machine is known by
// google.compute_engine, which only the metadata service of a virtual machine puts into
// a token; a token without it (a pod, or whoever may act as the service account) has
// the project in the name of its service account.
func read(c jwt.Claims) (method.Claims, error) {
	email := c.Text("email")
	verified, _ := c.Lookup("email_verified")
	out := method.Claims{Attributes: map[string][]string{"vm": {"false"}}}
	if c.Subject != "" {
		out.Attributes["sub"] = []string{c.Subject}
	}
	if verified != true || !strings.HasSuffix(email, ".gserviceaccount.com") {
		return out, machineFault("the token is not that of a service account: expected a verified e-mail address that ends in .gserviceaccount.com, got %.256q", email)
	}
	out.Attributes["service_account"] = []string{email}
	if _, vm := c.Lookup("google", "compute_engine"); vm {
		return readInstance(c, out)
	}
	m := regexp.MustCompile(`^[^@]+@([a-z][a-z0-9-]{4,28}[a-z0-9])\.iam\.gserviceaccount\.com$`).FindStringSubmatch(email)
	if m == nil {
		return out, machineFault("the token is not that of a virtual machine, and %.256q does not say which project it is of: use a service account that was made in the project, NAME@PROJECT.iam.gserviceaccount.com", email)
	}
	out.Attributes["project_id"] = []string{m[1]}
	return out, nil
}

func readInstance(c jwt.Claims, out method.Claims) (method.Claims, error) {
	get := func(name string) string { return c.Text("google", "compute_engine", name) }
	project, id, zone := get("project_id"), get("instance_id"), get("zone")
	if _, err := strconv.ParseUint(id, 10, 64); err != nil || project == "" || strings.Contains(project, "/") || zone == "" {
		return out, machineFault("the token has google.compute_engine without a project_id, zone and instance_id: instance_id is %.64q", id)
	}
	out.Attributes["vm"] = []string{"true"}
	out.Attributes["project_id"] = []string{project}
	out.Attributes["instance_id"] = []string{id}
	out.Attributes["location"] = []string{zone}
	// A zone is its region and a letter.
	if cut := strings.LastIndexByte(zone, '-'); cut > 0 && strings.Count(zone, "-") == 2 {
		out.Attributes["location"] = []string{zone, zone[:cut]}
	}
	if name := get("instance_name"); name != "" {
		out.Attributes["instance_name"] = []string{name}
	}
	out.Machine = "gcp/" + project + "/" + id
	return out, nil
}

func machineFault(format string, args ...any) error {
	return fault.New(fault.ErrDenied, format, args...).WithCode(method.CodeProofMachine)
}
