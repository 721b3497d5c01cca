package flowtest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestScriptedAnswersComeInTurn(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		c.as.Script(flowtest.Device,
			flowtest.ErrorResponse(503, "temporarily_unavailable"),
			flowtest.Response{Body: "<html>log in</html>", Header: http.Header{"Retry-After": {"7"}}},
			flowtest.Response{Drop: true},
			flowtest.Response{Func: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/tea")
				w.WriteHeader(http.StatusTeapot)
				_, _ = io.WriteString(w, r.PostForm.Get("scope"))
			}},
		)
		c.wantBody(c.post(c.device), 503, `{"error":"temporarily_unavailable"}`, "application/json")
		a := c.post(c.device)
		c.wantBody(a, 200, "<html>log in</html>", "text/html; charset=utf-8")
		if a.header.Get("Retry-After") != "7" {
			t.Errorf("header %v", a.header)
		}
		if _, err := c.do(c.request(http.MethodPost, c.device, c.form())); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("dropped: %v", err)
		}
		c.wantBody(c.post(c.device, "scope", "tea"), 418, "tea", "text/tea")
		c.start()
		var statuses []int
		for _, r := range c.as.Requests() {
			statuses = append(statuses, r.Status)
		}
		if want := []int{503, 200, 0, 418, 200}; !slices.Equal(statuses, want) {
			t.Errorf("recorded %v, want %v", statuses, want)
		}
	})
}

func TestOutageUntilUnscripted(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		tok := c.login()
		c.as.ScriptAlways(flowtest.Token, flowtest.ErrorResponse(503, "down"))
		c.as.Script(flowtest.Refresh, flowtest.ErrorResponse(429, "busy"))
		for _, want := range []int{429, 503, 503} {
			if a := c.refresh(tok.str("refresh_token")); a.status != want {
				t.Errorf("got %d, want %d", a.status, want)
			}
		}
		c.as.Unscript(flowtest.Token)
		if a := c.refresh(tok.str("refresh_token")); a.status != 200 {
			t.Errorf("after the outage: %s", a.raw)
		}
		if c.as.Count(flowtest.Refresh) != 4 || c.as.Count(flowtest.Poll) != 1 || c.as.Count(flowtest.Token) != 5 {
			t.Errorf("%d refreshes, %d token requests", c.as.Count(flowtest.Refresh), c.as.Count(flowtest.Token))
		}
		c.violations()
	})
}

func TestLostAnswer(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		tok := c.login()
		c.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Drop: true})
		req := c.request(http.MethodPost, c.token, c.form("grant_type", "refresh_token", "refresh_token", tok.str("refresh_token")))
		if _, err := c.do(req); err == nil {
			t.Fatal("the answer came")
		}
		c.want(c.refresh(tok.str("refresh_token")), 400, "invalid_grant")
		if s := c.as.Stats(); s.Refreshes != 1 || s.Reuses != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestEditedAnswer(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		tok := c.login()
		c.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
			delete(m, "scope")
			m["expires_in"] = json.RawMessage("1e400")
		})}, flowtest.Response{Pass: true, Edit: func(b []byte) []byte {
			return []byte(strings.Replace(string(b), "3600", "NaN", 1))
		}})
		a := c.refresh(tok.str("refresh_token"))
		if !strings.Contains(a.raw, `"expires_in":1e400`) {
			t.Errorf("edited: %s", a.raw)
		}
		_, rest, _ := strings.Cut(a.raw, `"refresh_token":"`)
		token, _, _ := strings.Cut(rest, `"`)
		if b := c.refresh(token); !strings.Contains(b.raw, `"expires_in":NaN`) {
			t.Errorf("edited: %s", b.raw)
		}
	})
}

func TestDelayedAnswerDoesNothingIfTheClientLeaves(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		c.as.Script(flowtest.Device, flowtest.Response{Pass: true, Delay: time.Minute}, flowtest.Response{Pass: true, Delay: time.Minute})
		c.hc.Timeout = time.Minute - 1
		if _, err := c.do(c.request(http.MethodPost, c.device, c.form())); err == nil {
			t.Fatal("the answer came")
		}
		c.hc.Timeout = time.Minute + 1
		began := time.Now()
		c.start()
		if time.Since(began) != time.Minute {
			t.Errorf("took %v", time.Since(began))
		}
		if p := c.as.Pending(); len(p) != 1 {
			t.Errorf("pending %q", p)
		}
	})
}

func TestScriptedPollAnswersCount(t *testing.T) {
	for _, tc := range []struct {
		name      string
		script    flowtest.Response
		wait      time.Duration
		violation []string
	}{
		{"slow_down", flowtest.ErrorResponse(400, "slow_down"), 10*time.Second - 1, []string{"too fast"}},
		{"slow_down, heeded", flowtest.ErrorResponse(400, "slow_down"), 10 * time.Second, nil},
		{"final error", flowtest.ErrorResponse(403, "access_denied"), time.Minute, []string{"after the final answer"}},
		{"final error with status 200", flowtest.ErrorResponse(200, "expired_token"), time.Minute, []string{"after the final answer"}},
		{"token", flowtest.Response{Body: `{"access_token":"x"}`}, time.Minute, []string{"after the final answer"}},
		{"rate limit", flowtest.ErrorResponse(429, "invalid_grant"), time.Minute, nil},
		{"outage", flowtest.ErrorResponse(503, "invalid_grant"), time.Minute, nil},
		{"login page", flowtest.Response{Status: 400, Body: "<html>"}, time.Minute, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(c *client) {
				code := c.start().str("device_code")
				time.Sleep(5 * time.Second)
				c.as.Script(flowtest.Poll, tc.script)
				c.poll(code)
				time.Sleep(tc.wait)
				c.poll(code)
				c.violations(tc.violation...)
			})
		})
	}
}

func TestRequestsAreRecorded(t *testing.T) {
	var log []string
	cfg := flowtest.Config{Logf: func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) }}
	bubble(t, cfg, func(c *client) {
		began := time.Now()
		tok := c.login("scope", "a")
		c.refresh(tok.str("refresh_token"))
		c.post("/token", "grant_type", "password")
		rs := c.as.Requests()
		if len(rs) != 4 {
			t.Fatalf("%d requests", len(rs))
		}
		for i, want := range []flowtest.Step{flowtest.Device, flowtest.Poll, flowtest.Refresh, flowtest.Token} {
			if rs[i].Step != want || rs[i].Method != http.MethodPost || rs[i].Form.Get("client_id") != "demo-client" {
				t.Errorf("request %d: %+v", i, rs[i])
			}
		}
		if rs[0].Form.Get("scope") != "a" || rs[0].Header.Get("Content-Type") == "" || rs[0].Path != "/device_authorization" {
			t.Errorf("recorded %+v", rs[0])
		}
		if !rs[0].Time.Equal(began) || rs[1].Time.Sub(began) != 5*time.Second || rs[3].Status != 400 {
			t.Errorf("recorded %v, %v, status %d", rs[0].Time, rs[1].Time, rs[3].Status)
		}
		rs[0].Form.Set("scope", "changed")
		if c.as.Requests()[0].Form.Get("scope") != "a" {
			t.Error("the record can be changed from outside")
		}
		all := strings.Join(log, "\n")
		if len(log) != 4 || strings.Contains(all, tok.str("refresh_token")) || !strings.Contains(all, "POST /token: 200") {
			t.Errorf("log %q", log)
		}
	})
}
