package flow_test

import (
	"strings"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// Else whoever runs the server could have codes and secrets sent to any port here.
func TestOnlyALocalIssuerNamesPlacesOnThisMachine(t *testing.T) {
	for _, tc := range []struct {
		issuer, place string
		insecure, ok  bool
	}{
		{"https://as.example", "http://127.0.0.1:25/token", false, false},
		{"https://as.example", "HTTP://[::1]/token", false, false},
		{"https://as.example", "http://app.localhost/token", false, false},
		{"https://as.example", "http://127.0.0.1:8080/token", true, true},
		{"http://127.0.0.1:8080", "http://127.0.0.1:8080/token", false, true},
		{"http://localhost:8080", "http://127.0.0.1:9090/token", false, true},
		{"https://localhost:8443", "http://localhost:8080/token", false, true},
	} {
		for _, name := range []string{"token_endpoint", "revocation_endpoint", "mtls_endpoint_aliases"} {
			var value any = tc.place
			if strings.HasPrefix(name, "mtls") {
				value = map[string]any{"token_endpoint": tc.place}
			}
			bubble(t, flowtest.Config{Issuer: tc.issuer}, func(w *world) {
				w.cfg.Issuer, w.cfg.InsecureHTTP = tc.issuer, tc.insecure
				w.as.ScriptAlways(flowtest.Discovery, member(name, value))
				s, _ := w.run()
				_, err := s.Login(w.Context())
				if tc.ok != (err == nil) || err != nil && (!strings.Contains(err.Error(), "<url>") || !strings.Contains(err.Error(), tc.place)) {
					w.Errorf("%s of %s at %s: %v", name, tc.issuer, tc.place, err)
				}
			})
		}
	}
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.ScriptAlways(flowtest.Discovery, member("token_endpoint", w.cfg.Issuer+"/"+strings.Repeat("x", 8<<10)))
		s, _ := w.run()
		if _, err := s.Login(w.Context()); err == nil || len(err.Error()) > 300 || !strings.Contains(err.Error(), "'token_endpoint <url>'") {
			w.Errorf("%.300v", err)
		}
	})
}
