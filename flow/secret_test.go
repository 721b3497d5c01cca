package flow_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestStatusAndFormattingHoldNoSecret(t *testing.T) {
	bubble(t, flowtest.Config{ClientSecret: "the client's secret"}, func(w *world) {
		w.cfg.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret("the client's secret"), nil }
		s, stop := w.run()
		look := func(when string, more ...any) {
			w.Helper()
			w.sleep(0)
			secrets := []string{"the client's secret", "the+client", "the%20client"}
			for _, r := range w.as.Requests() {
				for _, name := range []string{"device_code", "refresh_token", "client_secret"} {
					if v := r.Form.Get(name); v != "" {
						secrets = append(secrets, v)
					}
				}
			}
			var stored map[string]any
			if json.Unmarshal([]byte(w.store.record()), &stored) == nil {
				for _, name := range []string{"access_token", "refresh_token"} {
					if v, _ := stored[name].(string); v != "" {
						secrets = append(secrets, v)
					}
				}
			}
			w.mu.Lock()
			events := append([]flow.Event(nil), w.events...)
			w.mu.Unlock()
			cfg := w.cfg
			still := new(flow.MemoryStore) // the session's own is in use
			if err := still.Save(w.Context(), "record", []byte(w.store.record())); err != nil {
				w.Fatal(err)
			}
			cfg.Store = still
			things := append([]any{cfg, s.Status(), events, s.Current()}, more...)
			for _, e := range events {
				things = append(things, e.Err)
			}
			for _, thing := range things {
				text := fmt.Sprintf("%v %+v %#v %s %q %x", thing, thing, thing, thing, thing, thing)
				if b, err := json.Marshal(thing); err == nil {
					text += string(b)
				}
				for _, secret := range secrets {
					if strings.Contains(text, secret) || strings.Contains(text, fmt.Sprintf("%x", secret)) {
						w.Fatalf("%s: %T shows a secret", when, thing)
					}
				}
			}
		}
		w.as.ScriptAlways(flowtest.Poll, flowtest.Response{Func: echoSecrets(http.StatusServiceUnavailable, "server_error")})
		if _, err := s.Login(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.sleep(5 * time.Second)
		look("pending")
		w.as.Unscript(flowtest.Poll)
		w.as.ApproveAll()
		w.sleep(20 * time.Second)
		w.wantState(s, flow.StateAuthorized)
		token := w.wantToken(s)
		look("authorized", token, *token)
		w.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Func: echoSecrets(400, "invalid_request")})
		_, err := s.Refresh(w.Context())
		if err == nil || s.Status().Error == nil {
			w.Fatal("the refresh did not fail")
		}
		look("degraded", err)
		w.as.ScriptAlways(flowtest.Revoke, flowtest.Response{Func: echoSecrets(400, "invalid_request")})
		err = s.Logout(w.Context())
		if err == nil {
			w.Fatal("the revocation did not fail")
		}
		look("logged out", err)
		w.login(s)
		stop()
		look("ended", s, s.Current())
	})
}

// echoSecrets answers with everything that was sent, as careless servers do.
func echoSecrets(status int, code string) func(http.ResponseWriter, *http.Request) {
	return func(rw http.ResponseWriter, r *http.Request) {
		var all []string
		for _, vv := range r.PostForm {
			all = append(all, vv...)
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(status)
		_ = json.NewEncoder(rw).Encode(map[string]string{"error": code, "error_description": strings.Join(all, " ")})
	}
}
