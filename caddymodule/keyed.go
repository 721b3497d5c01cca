package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// KeyedBy gives each device, or whatever else a placeholder tells apart, a login of
// its own.
type KeyedBy struct {
	// What tells the sessions apart, such as `{http.request.header.X-Device-Id}` or
	// `{http.request.remote.host}`. Each value is a session of its own, with its own
	// login, record and place on the status page. Default: one session for all.
	SessionKey string `json:"session_key,omitempty"`

	// Most such sessions in memory at once. The others wait in the storage. A code
	// that waits for a person is never given up for another session, so at most half
	// of them, and no more than 100, have one. Default: 1000.
	MaxSessions int `json:"max_sessions,omitempty"`
}

const (
	defaultMaxSessions = 1000
	// maxKey is the longest key in bytes.
	maxKey = 256
	// keyMark stands between a session's name and what tells it from others of its
	// kind. No name that a person gives has it.
	keyMark = "~"
)

// keyed is what one configuration says about the sessions of a kind, as session is
// for a single one.
type keyed struct {
	app     *App
	session *session // they are all made after
	setting string   // session_key
	header  string   // that setting names and nothing else, or empty
	most    int      // 0: not said
	varKey  string   // of a request's variables: the *member that it belongs to
	live    atomic.Pointer[group]
	started chan struct{}
}

// keyedVar names the variable of a request that tells later handlers of a session
// which of its kind the request belongs to.
func keyedVar(session string) string { return "device_flow." + session + ".keyed" }

var (
	anyPlaceholder  = regexp.MustCompile(`\{[^{}\s]+\}`)
	loneHeader      = regexp.MustCompile(`^\{http\.request\.header\.([^{}*]+)\}$`)
	secretHeader    = regexp.MustCompile(`(?i)\{http\.request\.(header\.(proxy-)?authorization|header\.cookie|cookie\.[^{}]*)\}`)
	errKeyedOnly    = errors.New("each device has a session of its own here")
	errNoMoreLogins = errors.New("too many logins wait for a person already: approve some, or let their codes run out")
)

// keyBy notes that a handler wants s for each key apart. It returns nil for one
// that wants it as it is.
func (a *App) keyBy(s *session, by KeyedBy) (*keyed, error) {
	switch {
	case by.SessionKey == "" && by.MaxSessions != 0:
		return nil, errors.New("max_sessions is for a session_key: add one, as in 'session_key {http.request.header.X-Device-Id}'")
	case by.SessionKey == "":
		return nil, nil
	case by.MaxSessions < 0:
		return nil, fmt.Errorf("max_sessions %d: use a number of at least 1", by.MaxSessions)
	}
	if err := checkSessionKey(by.SessionKey); err != nil {
		return nil, err
	}
	if s.cfg.Login == flow.LoginEager {
		return nil, errors.New("login eager cannot stand beside session_key: nobody knows the keys before the first calls")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	k := s.keyed[by.SessionKey]
	if k == nil {
		k = &keyed{app: a, session: s, setting: by.SessionKey, varKey: keyedVar(s.name), started: make(chan struct{})}
		if m := loneHeader.FindStringSubmatch(by.SessionKey); m != nil {
			k.header = http.CanonicalHeaderKey(m[1])
		}
		if s.keyed == nil {
			s.keyed = make(map[string]*keyed)
		}
		s.keyed[by.SessionKey] = k
	}
	if by.MaxSessions != 0 {
		if k.most != 0 && k.most != by.MaxSessions {
			return nil, fmt.Errorf("max_sessions of session %s is both %d and %d: write the same number wherever session_key is %s", s.name, min(k.most, by.MaxSessions), max(k.most, by.MaxSessions), by.SessionKey)
		}
		k.most = by.MaxSessions
	}
	return k, nil
}

// checkSessionKey wants something that differs from request to request, and that
// may be shown.
func checkSessionKey(setting string) error {
	if !anyPlaceholder.MatchString(setting) {
		return fmt.Errorf("session_key %q has no placeholder: write one that tells callers apart, as in {http.request.header.X-Device-Id}", setting)
	}
	if m := secretHeader.FindString(setting); m != "" {
		return fmt.Errorf("session_key %s: the key is shown on the status page and in the log, so use a field that holds no secret", m)
	}
	return nil
}

// ofRequest is the key of a request. At the last hop its header fields are those for
// the API: there, the placeholder still has the caller's.
func (k *keyed) ofRequest(r *http.Request, hop bool) (string, *refusal) {
	var key string
	if k.header != "" && k.header != "Host" && !hop {
		switch v := r.Header[k.header]; len(v) {
		case 0:
		case 1:
			key = v[0]
		default:
			key = strings.Join(v, ",") // as the placeholder has it
		}
	} else if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		var err error
		if key, err = repl.ReplaceOrErr(k.setting, true, true); err != nil {
			key = ""
		}
	}
	if key == "" {
		what := "a value for " + k.setting
		if k.header != "" {
			what = "the header field " + k.header
		}
		return "", &refusal{http.StatusBadRequest, "session-key-missing", "The call does not say whose it is",
			"Each device has a login of its own here, and this call does not say which one is meant. Send " + what + "."}
	}
	if len(key) > maxKey {
		return "", &refusal{http.StatusBadRequest, "session-key-too-long", "The name of the device is too long",
			fmt.Sprintf("What tells devices apart here (%s) may have %d bytes at most.", k.setting, maxKey)}
	}
	return key, nil
}

// id is what stands for a key in names: a safe file name that nobody can find a
// second key for. It begins with what kind of key it is, since another placeholder
// makes another person's key of the same text.
func (k *keyed) id(key string) string {
	sum := sha256.Sum256([]byte(k.setting + "\x00" + key))
	return kindOf(k.setting) + hex.EncodeToString(sum[:12])
}

// kindOf is how all ids of a session_key begin.
func kindOf(setting string) string {
	sum := sha256.Sum256([]byte(setting))
	return hex.EncodeToString(sum[:4])
}

// baseName is the name of the session that name was made after; its own, if none.
func baseName(name string) string {
	base, _, _ := strings.Cut(name, keyMark)
	return base
}

// config describes the session of an id.
func (k *keyed) config(id string) flow.Config {
	cfg := k.session.cfg
	cfg.Name += keyMark + id
	cfg.StorageName += keyMark + id
	return cfg
}

// running is the session of a request. The error is a refusal that [refusalOf] finds,
// if the request does not say whose it is or there is no room for another session.
func (k *keyed) running(r *http.Request, vars map[string]any, hop bool) (*running, error) {
	g := k.live.Load()
	if g == nil {
		var err error
		if g, err = k.await(r.Context()); err != nil {
			return nil, err
		}
	}
	key, no := k.ofRequest(r, hop)
	if no != nil {
		return nil, no
	}
	m, err := g.member(r.Context(), k, key)
	if err != nil {
		return nil, err
	}
	if vars != nil {
		vars[k.varKey] = m
	}
	return m.running, nil
}

// await waits for the app to start.
func (k *keyed) await(ctx context.Context) (*group, error) {
	timer := time.NewTimer(startWait)
	defer timer.Stop()
	select {
	case <-k.started:
		return k.live.Load(), nil
	case <-timer.C:
		return nil, k.notReady()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// isOf reports whether a source has the tokens of that login: of several handlers on
// the way of a request, each may have chosen another.
func isOf(src flow.Source, s *flow.Session) bool {
	switch src := src.(type) {
	case *flow.Session:
		return src == s
	case *flow.Derived:
		return src.Session() == s
	}
	return false
}

// notReady is about a session that cannot be had for a moment.
func (k *keyed) notReady() error {
	return &flow.NotReadyError{RetryAfter: time.Second, Status: flow.Status{Session: k.session.name, State: flow.StateUnavailable}}
}

// crowded is a refusal that time will lift.
type crowded struct {
	refusal
	after time.Duration
}

// noTurn is err, the reason why there is no token, unless it is that too many other
// sessions wait for a person already.
func noTurn(s *running, err error) error {
	m := s.member.Load()
	var notReady *flow.NotReadyError
	if m != nil && m.noTurn.Load() && errors.As(err, &notReady) && notReady.Status.State == flow.StateLoginRequired {
		return tooManyLogins()
	}
	return err
}

func tooManyLogins() error {
	return &crowded{refusal{http.StatusTooManyRequests, "too-many-logins", "Too many logins are waiting",
		"Too many devices wait for a person to log them in, so no further login is begun. Approve those on the status page, or try again later."}, time.Minute}
}

func tooManySessions() error {
	return &crowded{refusal{http.StatusServiceUnavailable, "too-many-sessions", "Too many devices at once",
		"No further device can be served now, for all sessions in memory are in use. Try again later, or raise max_sessions."}, 10 * time.Second}
}

// refusalOf finds the refusal that an error of running is. after is zero unless it
// makes sense to try again.
func refusalOf(err error) (no *refusal, after time.Duration) {
	if c := (*crowded)(nil); errors.As(err, &c) {
		return &c.refusal, c.after
	}
	errors.As(err, &no)
	return no, 0
}
