package cors_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cors"
)

func TestAnswer(t *testing.T) {
	policy := &typesv1.AppCORS{
		AllowedOrigins: []string{"https://ui.test"}, AllowedMethods: []string{"PUT"}, AllowedHeaders: []string{"X-A", "X-B"}, AllowCredentials: true, MaxAge: 60,
	}
	for _, tc := range []struct{ name, origin, method, headers, allowed, granted string }{
		{"allowed", "https://ui.test", "PUT", "x-a, x-evil", "https://ui.test", "x-a"},
		{"other_origin", "https://evil.test", "PUT", "x-a", "", ""},
		{"null_origin", "null", "PUT", "", "", ""},
		{"longer_origin", "https://ui.test.evil.test", "PUT", "", "", ""},
		{"other_method", "https://ui.test", "DELETE", "", "", ""},
		{"method_in_other_case", "https://ui.test", "put", "", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodOptions, "/", nil)
			r.Header.Set("Origin", tc.origin)
			r.Header.Set("Access-Control-Request-Method", tc.method)
			r.Header.Set("Access-Control-Request-Headers", tc.headers)
			if !cors.Preflight(r) {
				t.Fatal("Preflight = false, want true")
			}
			w := httptest.NewRecorder()
			cors.Answer(w, r, policy)
			h := w.Header()
			if w.Code != http.StatusNoContent || h.Get("Access-Control-Allow-Origin") != tc.allowed || h.Get("Access-Control-Allow-Headers") != tc.granted {
				t.Errorf("Answer = %d %v, want origin %q, headers %q", w.Code, h, tc.allowed, tc.granted)
			}
			if (h.Get("Access-Control-Allow-Credentials") == "true") != (tc.allowed != "") || (h.Get("Access-Control-Max-Age") == "60") != (tc.allowed != "") {
				t.Errorf("Answer = %v, want credentials and age only where it is allowed", h)
			}
		})
	}
}

func TestRewrite(t *testing.T) {
	policy := &typesv1.AppCORS{AllowedOrigins: []string{"*"}, AllowCredentials: true, ExposedHeaders: []string{"X-Total"}}
	h := http.Header{"Access-Control-Allow-Origin": {"https://evil.test"}, "Access-Control-Allow-Credentials": {"true"}, "X-Total": {"1"}}
	cors.Rewrite(h, policy, "https://ui.test")
	if h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Credentials") != "" || h.Get("Access-Control-Expose-Headers") != "X-Total" || h.Get("X-Total") != "1" {
		t.Errorf("Rewrite = %v, want the policy's words", h)
	}
	h = http.Header{"Access-Control-Allow-Origin": {"*"}, "Vary": {"Origin"}}
	cors.Rewrite(h, &typesv1.AppCORS{}, "https://ui.test")
	if h.Get("Access-Control-Allow-Origin") != "" || strings.Join(h["Vary"], ",") != "Origin" {
		t.Errorf("Rewrite by an empty policy = %v, want no permission", h)
	}
}
