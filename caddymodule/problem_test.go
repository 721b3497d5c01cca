package caddymodule

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func unavailable(st flow.Status, statusURL string, accept string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/things", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	writeUnavailable(w, r, st, statusURL, 4500*time.Millisecond)
	return w
}

func TestProblemOfEachStateIsAsReviewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		samples := sampleStatuses(time.Now())
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(samples)) {
			w := unavailable(samples[name], "http://localhost:8080"+testPath, "*/*")
			b.WriteString("== " + name + "\n" + w.Body.String())
		}
		golden(t, "problems.txt", b.String())
		golden(t, "problem-html.txt", "<!-- pending -->\n"+unavailable(samples["pending"], "http://localhost:8080"+testPath, "text/html").Body.String())
	})
}

func TestProblemFormatFollowsAccept(t *testing.T) {
	st := sampleStatuses(time.Now())["pending"]
	for accept, want := range map[string]string{
		"":                           typeProblem,
		"*/*":                        typeProblem,
		"application/json":           typeProblem,
		"application/problem+json":   typeProblem,
		"application/*":              typeProblem,
		"image/png":                  typeProblem,
		"text/plain":                 typePlain,
		"text/*":                     typePlain,
		"text/html,*/*;q=0.8":        typeHTML,
		"text/html;q=0.1,text/plain": typePlain,
		"application/json,text/html": typeProblem,
	} {
		w := unavailable(st, "/.device-flow", accept)
		if got, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";"); got != want {
			t.Errorf("%q: %s, want %s", accept, got, want)
		}
		if w.Code != 503 || w.Header().Get("Retry-After") != "5" || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Vary") != "Accept, Accept-Language" {
			t.Errorf("%q: %d %v", accept, w.Code, w.Header())
		}
		for _, part := range []string{"QTZL-MCBW", "acme.eu.auth0.com/activate"} {
			if !strings.Contains(w.Body.String(), part) {
				t.Errorf("%q: no %s in %s", accept, part, w.Body)
			}
		}
	}
}

func TestProblemHasTheMembersOfTheContract(t *testing.T) {
	for name, st := range sampleStatuses(time.Now()) {
		for _, url := range []string{"http://localhost:8080" + testPath, ""} {
			var m map[string]any
			if err := json.Unmarshal(unavailable(st, url, "*/*").Body.Bytes(), &m); err != nil {
				t.Fatal(err)
			}
			want := []string{"type", "title", "status", "detail", "state"}
			if url != "" {
				want = append(want, "status_url")
			}
			if st.State == flow.StatePending {
				want = append(want, "verification_uri", "user_code")
			}
			if got := slices.Sorted(maps.Keys(m)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
			if m["type"] != "urn:caddy-deviceflow:problem:"+strings.ReplaceAll(string(st.State), "_", "-") || m["state"] != string(st.State) || m["status"] != 503.0 {
				t.Errorf("%s: %v", name, m)
			}
			if url != "" && st.State != flow.StatePending && st.State != flow.StateUnavailable && !st.State.Usable() && !strings.Contains(m["detail"].(string), url) {
				t.Errorf("%s: the detail does not say where: %v", name, m["detail"])
			}
		}
	}
}

func TestProblemRetryAfterIsAtLeastASecond(t *testing.T) {
	for in, want := range map[time.Duration]string{0: "1", -time.Hour: "1", time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", time.Minute: "60"} {
		w := httptest.NewRecorder()
		writeUnavailable(w, httptest.NewRequest("GET", "/", nil), flow.Status{}, "", in)
		if got := w.Header().Get("Retry-After"); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestProblemHeadHasNoBody(t *testing.T) {
	w := httptest.NewRecorder()
	writeUnavailable(w, httptest.NewRequest(http.MethodHead, "/", nil), flow.Status{}, "", time.Second)
	if w.Code != 503 || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "" {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}
}

func TestProblemTakesNoMarkupFromAServer(t *testing.T) {
	for state := range tones {
		for _, payload := range []string{`"><script>alert(1)</script>`, "javascript:alert(1)", "data:text/html,x", "a\x1b[2J\u202e\r\nSet-Cookie: a=b"} {
			for _, accept := range []string{"text/html", "text/plain", "*/*"} {
				w := unavailable(hostile(payload, state), testPath, accept)
				body := w.Body.String()
				if strings.Contains(body, `<script`) && accept == "text/html" || strings.Contains(body, `href="javascript:`) || strings.Contains(body, `href="data:`) ||
					strings.ContainsAny(body, "\x1b\u202e\r") {
					t.Errorf("%s, %s: %s", state, accept, body)
				}
			}
		}
	}
	csp := unavailable(flow.Status{}, "", "text/html").Header().Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'; style-src 'sha256-") || strings.Contains(csp, "script-src") {
		t.Errorf("policy %q", csp)
	}
}
