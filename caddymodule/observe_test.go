package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// observed runs a session in a bubble, and returns what it logs above debug level, in short.
func observed(t *testing.T, as *flowtest.Server, play func(s *flow.Session)) (lines []string) {
	t.Helper()
	core, entries := observer.New(zapcore.InfoLevel)
	cfg := flow.Config{
		Issuer: as.Issuer(), ClientID: "demo-client", Scope: []string{"openid"},
		HTTP: as.RoundTripper(), Observer: logObserver(zap.New(core)),
	}
	r, err := start(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	func() {
		defer as.Close()
		defer func() {
			if err := r.release(nil, poolKey{cfg.Name, cfg.Fingerprint()}); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		play(r.Session)
	}()
	for _, e := range entries.All() {
		fields := e.ContextMap()
		lines = append(lines, fmt.Sprintf("%s %v>%v", e.Level, fields["from"], fields["state"]))
	}
	return lines
}

func TestThereIsOneLineForEachChangeOfState(t *testing.T) {
	for name, c := range map[string]struct {
		play func(*testing.T, *flowtest.Server, *flow.Session)
		want []string
	}{
		"a login, refreshed for a day, and logged out": {func(t *testing.T, as *flowtest.Server, s *flow.Session) {
			logIn(t, as, s)
			<-time.After(24 * time.Hour) // of the bubble
			if err := s.Logout(t.Context()); err != nil {
				t.Error(err)
			}
		}, []string{"warn login_required>pending", "info pending>authorized", "warn authorized>login_required"}},

		"a login that is refused": {func(t *testing.T, as *flowtest.Server, s *flow.Session) {
			st := code(t, s)
			if err := as.Deny(st.Login.UserCode); err != nil {
				t.Error(err)
			}
			await(t, s, flow.StateLoginRequired)
		}, []string{"warn login_required>pending", "warn pending>login_required"}},

		"a second login beside a token": {func(t *testing.T, as *flowtest.Server, s *flow.Session) {
			logIn(t, as, s)
			code(t, s)
		}, []string{"warn login_required>pending", "info pending>authorized", "warn <nil>>authorized"}},

		"an outage over the end of the token": {func(t *testing.T, as *flowtest.Server, s *flow.Session) {
			as.SetConfig(func(c *flowtest.Config) { c.AccessTokenLifetime = 10 * time.Second })
			logIn(t, as, s)
			as.ScriptAlways(flowtest.Refresh, flowtest.ErrorResponse(503, "temporarily_unavailable"))
			await(t, s, flow.StateUnavailable)
			as.Unscript(flowtest.Refresh)
			await(t, s, flow.StateAuthorized)
		}, []string{"warn login_required>pending", "info pending>authorized", "warn authorized>degraded", "warn degraded>unavailable", "info unavailable>authorized"}},

		"a login that the server has ended": {func(t *testing.T, as *flowtest.Server, s *flow.Session) {
			as.SetConfig(func(c *flowtest.Config) { c.AccessTokenLifetime = 10 * time.Second })
			logIn(t, as, s)
			as.RevokeAll()
			await(t, s, flow.StateLoginRequired)
		}, []string{"warn login_required>pending", "info pending>authorized", "warn authorized>degraded", "warn degraded>login_required"}},

		"a client that the server refuses": {func(t *testing.T, as *flowtest.Server, s *flow.Session) {
			as.Script(flowtest.Device, flowtest.ErrorResponse(401, "invalid_client"))
			if _, err := s.Login(t.Context()); err == nil {
				t.Error("no error")
			}
		}, []string{"error login_required>misconfigured"}},

		"a server that cannot be reached": {func(t *testing.T, as *flowtest.Server, s *flow.Session) {
			as.ScriptAlways(flowtest.Device, flowtest.Response{Drop: true})
			for range 2 {
				if _, err := s.Login(t.Context()); err == nil {
					t.Error("no error")
				}
			}
		}, []string{"warn <nil>>login_required", "warn <nil>>login_required"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				as := flowtest.New(flowtest.Config{})
				got := observed(t, as, func(s *flow.Session) { c.play(t, as, s) })
				want := append([]string{"warn unavailable>login_required"}, c.want...) // nothing was stored
				if !slices.Equal(got, want) {
					t.Errorf("logged\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
				}
			})
		})
	}
}

func code(t *testing.T, s *flow.Session) flow.Status {
	t.Helper()
	st, err := s.Login(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func logIn(t *testing.T, as *flowtest.Server, s *flow.Session) {
	t.Helper()
	if err := as.Approve(code(t, s).Login.UserCode); err != nil {
		t.Fatal(err)
	}
	await(t, s, flow.StateAuthorized)
}

func TestEventLevels(t *testing.T) {
	failed := &flow.StatusError{Code: flow.CodeStorageFailed}
	for _, c := range []struct {
		kind  flow.EventKind
		state flow.State
		err   *flow.StatusError
		want  zapcore.Level
	}{
		{flow.EventStateChanged, flow.StateLoginRequired, nil, zapcore.WarnLevel},
		{flow.EventStateChanged, flow.StatePending, nil, zapcore.WarnLevel},
		{flow.EventStateChanged, flow.StateAuthorized, nil, zapcore.InfoLevel},
		{flow.EventStateChanged, flow.StateDegraded, nil, zapcore.WarnLevel},
		{flow.EventStateChanged, flow.StateDegraded, failed, zapcore.ErrorLevel},
		{flow.EventStateChanged, flow.StateUnavailable, nil, zapcore.WarnLevel},
		{flow.EventStateChanged, flow.StateMisconfigured, nil, zapcore.ErrorLevel},
		{flow.EventLoginPending, flow.StateAuthorized, nil, zapcore.WarnLevel},
		{flow.EventLoginFailed, flow.StateAuthorized, nil, zapcore.WarnLevel},
		{flow.EventLoginSucceeded, flow.StateAuthorized, nil, zapcore.DebugLevel},
		{flow.EventTokenRefreshed, flow.StateAuthorized, nil, zapcore.DebugLevel},
		{flow.EventRefreshFailed, flow.StateDegraded, nil, zapcore.DebugLevel},
		{flow.EventLoggedOut, flow.StateLoginRequired, nil, zapcore.InfoLevel},
		{flow.EventStoreFailed, flow.StateLoginRequired, failed, zapcore.ErrorLevel},
		{flow.EventStoreHealed, flow.StateAuthorized, nil, zapcore.InfoLevel},
	} {
		level, msg := describeEvent(flow.Event{Kind: c.kind, Status: flow.Status{State: c.state, Error: c.err}})
		if level != c.want || msg == "" {
			t.Errorf("%s in %s: %s %q, want %s", c.kind, c.state, level, msg, c.want)
		}
	}
}

// S33 of the scorecard: what a server sends must not steer the terminal that the log is read on.
func TestTextOfTheServerCannotSteerATerminal(t *testing.T) {
	const evil = "AB\x1b[2J\x1b]0;x\x07\u009b2J\u202eCD\nEF\u2066\x7f"
	at := time.Date(2026, 11, 23, 13, 0, 0, 0, time.UTC)
	e := flow.Event{
		Kind: flow.EventLoginFailed, Err: &flow.Error{Op: "poll", Code: "x"},
		Status: flow.Status{
			Session: "acme", State: flow.StatePending,
			Login: &flow.LoginInfo{UserCode: evil, VerificationURI: "https://" + evil, ExpiresAt: at},
		},
	}
	for name, encoder := range map[string]zapcore.Encoder{
		"json":    zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()),
		"console": zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()),
	} {
		var out bytes.Buffer
		logObserver(zap.New(zapcore.NewCore(encoder, zapcore.AddSync(&out), zapcore.DebugLevel)))(e)
		line := out.String()
		if !strings.Contains(line, "AB[2J") {
			t.Errorf("%s: the code is not in %q", name, line)
		}
		if strings.ContainsAny(line, "\x1b\x07\x7f\u009b\u202e\u2066") || strings.Count(line, "\n") != 1 {
			t.Errorf("%s: %q", name, line)
		}
	}
}

// An event of somebody else's error, a store's say, is told by its status, which flow words.
func TestAForeignErrorIsNotLoggedRaw(t *testing.T) {
	var out bytes.Buffer
	log := logObserver(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&out), zapcore.DebugLevel)))
	log(flow.Event{Kind: flow.EventStoreFailed, Err: errors.New("dsn=user:password@host")})
	if strings.Contains(out.String(), "password") {
		t.Error(out.String())
	}
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Error(err)
	}
}
