// Package evidence reads what a machine could prove about itself from a file: a list
// of attributes, a signed token (JWT) or the answer of `aws sts get-caller-identity`.
// It verifies nothing. It is for trying the rules of a token on, and never decides
// whether a machine is admitted: that is what the join methods are for.
package evidence

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/types/known/structpb"

	"teleport/internal/fault"
)

// Limits of what is read.
const (
	// MaxSize is the most bytes of a file.
	MaxSize = 256 << 10
	// maxAttributes and maxDepth bound the claims of a token.
	maxAttributes = 1024
	maxDepth      = 8
)

// Forms of evidence.
const (
	FormAttributes     = "attributes"
	FormJWT            = "the claims of a token (JWT)"
	FormCallerIdentity = "an AWS caller identity"
	FormInstance       = "an EC2 instance identity document"
	FormEvent          = "an audit event"
)

// Evidence is what a file says.
type Evidence struct {
	// Form is one of the forms above.
	Form string
	// Attributes by name, as the rules of tokens have them.
	Attributes map[string][]string
}

// Read reads a file in one of the forms. Nothing in it is verified.
func Read(data []byte) (*Evidence, error) {
	if len(data) > MaxSize {
		return nil, fault.Limit("%d bytes are more than what a machine proves: use at most %d", len(data), MaxSize)
	}
	data = bytes.TrimSpace(data)
	if claims, ok := jwtClaims(data); ok {
		attributes, err := fromClaims(claims)
		return &Evidence{FormJWT, attributes}, err
	}
	var top map[string]any
	if err := decode(data, &top); err != nil {
		return nil, fault.Invalid("neither a token (JWT) nor attributes in JSON or YAML, such as `aws_account: \"111111111111\"`: %s", err)
	}
	if len(top) == 0 {
		return nil, fault.Invalid("there are no attributes in it")
	}
	if attributes, ok := callerIdentity(top); ok {
		return &Evidence{FormCallerIdentity, attributes}, nil
	}
	if attributes, ok := instanceDocument(top); ok {
		return &Evidence{FormInstance, attributes}, nil
	}
	attributes := map[string][]string{}
	for name, v := range top {
		values, ok := texts(v)
		if !ok {
			return nil, fault.Invalid("attribute %q: expected a text or a list of texts", name)
		}
		attributes[name] = values
	}
	return &Evidence{FormAttributes, attributes}, nil
}

// FromEvent returns what the audit event of a join, admitted or refused, says was
// verified. It is empty if the join did not come so far.
func FromEvent(fields *structpb.Struct) *Evidence {
	out := &Evidence{FormEvent, map[string][]string{}}
	for name, v := range fields.GetFields()["attributes"].GetStructValue().GetFields() {
		if values, ok := texts(v.AsInterface()); ok {
			out.Attributes[name] = values
		}
	}
	return out
}

// decode reads JSON, whose numbers stay as they were written, or else YAML.
func decode(data []byte, to *map[string]any) error {
	if bytes.HasPrefix(data, []byte("{")) {
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		return d.Decode(to)
	}
	if err := yaml.Unmarshal(data, to); err != nil {
		return fmt.Errorf("%s", yaml.FormatError(err, false, false))
	}
	return nil
}

// texts returns a value as the list of texts that it is.
func texts(v any) ([]string, bool) {
	if list, ok := v.([]any); ok {
		out := make([]string, 0, len(list))
		for _, one := range list {
			text, ok := scalar(one)
			if !ok {
				return nil, false
			}
			out = append(out, text)
		}
		return out, true
	}
	text, ok := scalar(v)
	return []string{text}, ok
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return strconv.FormatInt(int64(v), 10), true
		}
		return strconv.FormatFloat(v, 'g', -1, 64), true
	case int, int64, uint64:
		return fmt.Sprint(v), true
	}
	return "", false
}

// jwtClaims returns the claims of a token in compact form.
func jwtClaims(data []byte) (map[string]any, bool) {
	parts := strings.Split(string(data), ".")
	if len(parts) != 3 || !strings.HasPrefix(parts[0], "ey") {
		return nil, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return nil, false
	}
	var claims map[string]any
	if err := decode(payload, &claims); err != nil || claims == nil {
		return nil, false
	}
	return claims, true
}

// fromClaims names claims as the rules do: as they are; nested ones with a dot
// between; workspaceUuid as workspace_uuid; and what the rules of a platform call
// otherwise under that name too.
func fromClaims(claims map[string]any) (map[string][]string, error) {
	out := map[string][]string{}
	if err := flatten(out, "", claims, 0); err != nil {
		return nil, err
	}
	for name, values := range out {
		add(out, snake(name), values)
		if rest, ok := strings.CutPrefix(name, "terraform_"); ok {
			add(out, rest, values)
		}
	}
	for claim, name := range map[string]string{
		"google.compute_engine.project_id": "project_id",
		"google.compute_engine.zone":       "location",
		"oidc.circleci.com/project-id":     "project_id",
		"oidc.circleci.com/context-ids":    "context_id",
		"tid":                              "tenant",
		"prj_id":                           "project_id",
		"def_id":                           "definition_id",
		"rpo_uri":                          "repository_uri",
		"rpo_ver":                          "repository_version",
		"rpo_ref":                          "repository_ref",
	} {
		add(out, name, out[claim])
	}
	fromSubject(out)
	fromGoogle(out)
	fromAzure(out)
	return out, nil
}

func flatten(out map[string][]string, prefix string, claims map[string]any, depth int) error {
	for name, v := range claims {
		if len(out) >= maxAttributes || depth > maxDepth {
			return fault.Limit("the token has more than %d claims, or nests them more than %d deep", maxAttributes, maxDepth)
		}
		if inner, ok := v.(map[string]any); ok {
			if err := flatten(out, prefix+name+".", inner, depth+1); err != nil {
				return err
			}
			continue
		}
		if values, ok := texts(v); ok {
			out[prefix+name] = values
		}
	}
	return nil
}

func add(out map[string][]string, name string, values []string) {
	if _, there := out[name]; !there && len(values) > 0 {
		out[name] = values
	}
}

// snake writes workspaceUuid as workspace_uuid.
func snake(name string) string {
	var out strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) {
			if i > 0 {
				out.WriteByte('_')
			}
			r = unicode.ToLower(r)
		}
		out.WriteRune(r)
	}
	return out.String()
}

// fromSubject takes apart the subjects of Kubernetes and Azure DevOps.
func fromSubject(out map[string][]string) {
	sub := out["sub"]
	if len(sub) != 1 {
		return
	}
	if rest, ok := strings.CutPrefix(sub[0], "system:serviceaccount:"); ok {
		if namespace, name, ok := strings.Cut(rest, ":"); ok {
			add(out, "service_account", []string{rest})
			add(out, "service_account_namespace", []string{namespace})
			add(out, "service_account_name", []string{name})
		}
	}
	if rest, ok := strings.CutPrefix(sub[0], "p://"); ok {
		if parts := strings.Split(rest, "/"); len(parts) == 3 {
			add(out, "project_name", parts[1:2])
			add(out, "pipeline_name", parts[2:])
		}
	}
}

// fromGoogle adds what only tokens of Google say.
func fromGoogle(out map[string][]string) {
	if !slices.Equal(out["iss"], []string{"https://accounts.google.com"}) {
		return
	}
	email := out["email"]
	add(out, "service_account", email)
	_, vm := out["google.compute_engine.instance_id"]
	add(out, "vm", []string{strconv.FormatBool(vm)})
	if zone := out["google.compute_engine.zone"]; len(zone) == 1 {
		if i := strings.LastIndexByte(zone[0], '-'); i > 0 {
			out["location"] = []string{zone[0], zone[0][:i]}
		}
	}
	if len(email) == 1 {
		if _, domain, ok := strings.Cut(email[0], "@"); ok {
			if project, ok := strings.CutSuffix(domain, ".iam.gserviceaccount.com"); ok {
				add(out, "project_id", []string{project})
			}
		}
	}
}

// fromAzure takes apart the machine that a token of a managed identity names.
func fromAzure(out map[string][]string) {
	id := out["xms_mirid"]
	if len(id) != 1 {
		return
	}
	// /subscriptions/ID/resourcegroups/NAME/providers/...
	parts := strings.Split(id[0], "/")
	if len(parts) < 5 || !strings.EqualFold(parts[1], "subscriptions") || !strings.EqualFold(parts[3], "resourcegroups") {
		return
	}
	add(out, "subscription", parts[2:3])
	add(out, "resource_group", parts[4:5])
}

// callerIdentity reads the answer of `aws sts get-caller-identity`.
func callerIdentity(top map[string]any) (map[string][]string, bool) {
	account, a := scalar(top["Account"])
	arn, b := scalar(top["Arn"])
	if !a || !b {
		return nil, false
	}
	out := map[string][]string{"aws_account": {account}, "aws_arn": {arn}}
	if id, ok := scalar(top["UserId"]); ok {
		out["aws_user_id"] = []string{id}
	}
	return out, true
}

// instanceDocument reads what EC2's metadata service says of an instance.
func instanceDocument(top map[string]any) (map[string][]string, bool) {
	account, a := scalar(top["accountId"])
	region, b := scalar(top["region"])
	instance, c := scalar(top["instanceId"])
	return map[string][]string{"aws_account": {account}, "aws_region": {region}, "aws_instance_id": {instance}}, a && b && c
}
