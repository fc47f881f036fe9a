package awsfake

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

func parseForm(r *http.Request, body []byte) (url.Values, error) {
	if r.Method != http.MethodPost || r.URL.Path != "/" || r.URL.RawQuery != "" {
		return nil, errors.New("expected a form posted to /")
	}
	return url.ParseQuery(string(body))
}

// sts answers the three questions that a join asks.
func (c *Cloud) sts(w http.ResponseWriter, r *http.Request, body []byte, form url.Values) {
	if form.Get("Action") == "AssumeRoleWithWebIdentity" { // the token is the proof
		c.mu.Lock()
		arn := c.tokens[form.Get("WebIdentityToken")]
		c.mu.Unlock()
		if arn == "" || arn != form.Get("RoleArn") || r.Header.Get("Authorization") != "" {
			reply(w, r, "", &Failure{http.StatusBadRequest, "InvalidIdentityToken", "no role for this token"})
			return
		}
		c.assumed(w, r, "AssumeRoleWithWebIdentity", form)
		return
	}
	caller, failure := c.authenticate(r, body, "sts")
	if failure != nil {
		reply(w, r, "", failure)
		return
	}
	switch form.Get("Action") {
	case "GetCallerIdentity":
		identity(w, r, caller)
	case "AssumeRole":
		c.assumed(w, r, "AssumeRole", form)
	default:
		reply(w, r, "", &Failure{http.StatusBadRequest, "InvalidAction", "no such action"})
	}
}

// identity answers GetCallerIdentity, as JSON for who asks for it.
func identity(w http.ResponseWriter, r *http.Request, k Key) {
	if r.Header.Get("Accept") == "application/json" {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"GetCallerIdentityResponse": map[string]any{
			"GetCallerIdentityResult": map[string]string{"Account": k.Account, "Arn": k.ARN, "UserId": k.UserID},
			"ResponseMetadata":        map[string]string{"RequestId": "00000000-0000-0000-0000-000000000000"},
		}})
		return
	}
	reply(w, r, fmt.Sprintf(`<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>`+
		`<Arn>%s</Arn><UserId>%s</UserId><Account>%s</Account></GetCallerIdentityResult>`+
		`<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></GetCallerIdentityResponse>`,
		escapeXML(k.ARN), escapeXML(k.UserID), escapeXML(k.Account)), nil)
}

func (c *Cloud) assumed(w http.ResponseWriter, r *http.Request, action string, form url.Values) {
	name := form.Get("RoleSessionName")
	k, ok := c.session(form.Get("RoleArn"), name)
	if !ok || name == "" || strings.ContainsAny(name, "/: ") {
		reply(w, r, "", &Failure{http.StatusForbidden, "AccessDenied", "not authorized to perform sts:" + action})
		return
	}
	reply(w, r, fmt.Sprintf(`<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult><AssumedRoleUser><Arn>%[2]s</Arn></AssumedRoleUser>`+
		`<Credentials><AccessKeyId>%[3]s</AccessKeyId><SecretAccessKey>%[4]s</SecretAccessKey><SessionToken>%[5]s</SessionToken><Expiration>%[6]s</Expiration></Credentials>`+
		`</%[1]sResult><ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></%[1]sResponse>`,
		action, escapeXML(k.ARN), escapeXML(k.ID), escapeXML(k.Secret), escapeXML(k.SessionToken), k.Expires.UTC().Format(time.RFC3339)), nil)
}
