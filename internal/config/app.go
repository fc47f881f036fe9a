package config

import (
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// DebugApp is the name of the application that debug_app adds.
const DebugApp = "dumper"

// AppConfig is the app_service section.
type AppConfig struct {
	Enabled bool
	// Debug adds an application of the name DebugApp that shows what reaches it.
	Debug bool
	// Matchers choose applications of the cluster by their labels: those that meet one of
	// them are served.
	Matchers []map[string]*typesv1.Strings
	// Apps are those that the file has, checked.
	Apps []*typesv1.App
}

func appSchema(c *AppConfig) schema {
	s := schema{
		"enabled":   setBool(&c.Enabled),
		"debug_app": setBool(&c.Debug),
		"resources": readMatchers(&c.Matchers),
		"apps": func(v value) {
			v.list("applications", func(e value) {
				app := readApp(e)
				for _, other := range c.Apps {
					if name := app.GetMetadata().GetName(); name != "" && other.GetMetadata().GetName() == name {
						e.bad("a second application of the name %s: expected one", quote(name))
					}
				}
				c.Apps = append(c.Apps, app)
			})
		},
	}
	return withKnown(s, knownApp())
}

// readApp reads one application and checks it as if it came from elsewhere.
func readApp(v value) *typesv1.App {
	app := types.New(types.KindApp, "").(*typesv1.App)
	md, spec := app.GetMetadata(), &typesv1.AppSpec{}
	app.Spec = spec
	before := len(v.d.problems)
	v.mapping(withKnown(schema{
		"name":                 setText(&md.Name, "a name"),
		"description":          setText(&md.Description, "a description"),
		"uri":                  setText(&spec.Uri, "a URI such as http://localhost:8080"),
		"public_addr":          setText(&spec.PublicAddr, "a host name"),
		"labels":               readLabelsTo(&md.Labels),
		"commands":             readCommandLabels(&spec.DynamicLabels),
		"insecure_skip_verify": setBool(&spec.InsecureSkipVerify),
		"required_apps":        addTexts(&spec.RequiredApps, "names of applications"),
		"cors": func(e value) {
			cors := &typesv1.AppCORS{}
			spec.Cors = cors
			e.mapping(schema{
				"allowed_origins":   addTexts(&cors.AllowedOrigins, "origins"),
				"allowed_methods":   addTexts(&cors.AllowedMethods, "methods"),
				"allowed_headers":   addTexts(&cors.AllowedHeaders, "names of headers"),
				"exposed_headers":   addTexts(&cors.ExposedHeaders, "names of headers"),
				"allow_credentials": setBool(&cors.AllowCredentials),
				"max_age":           setCount(&cors.MaxAge),
			})
		},
		"rewrite": func(e value) {
			rewrite := &typesv1.AppRewrite{}
			spec.Rewrite = rewrite
			e.mapping(schema{
				"redirect": addTexts(&rewrite.Redirect, "host names"),
				"headers": func(h value) {
					h.list("headers", func(one value) { rewrite.Headers = append(rewrite.Headers, readHeader(one)) })
				},
				"jwt_claims": setText(&rewrite.JwtClaims, "the name of a set of claims"),
			})
		},
	}, knownOneApp()))
	if len(v.d.problems) == before {
		checkRead(v, app, []rename{
			{"metadata.", ""}, {"spec.dynamic_labels", "commands"}, {"spec.", ""},
		})
	}
	return app
}

// readHeader reads "Name: value", or both by their own keys.
func readHeader(v value) *typesv1.AppHeader {
	h := &typesv1.AppHeader{}
	if text, ok := scalarText(v.peek()); ok {
		name, val, found := strings.Cut(text, ":")
		if !found {
			v.bad("bad header %s: expected \"Name: value\"", quote(text))
		}
		h.Name, h.Value = strings.TrimSpace(name), strings.TrimSpace(val)
		return h
	}
	v.mapping(schema{"name": setText(&h.Name, "the name of a header"), "value": setText(&h.Value, "a value")})
	return h
}
