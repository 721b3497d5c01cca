package flow_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// files are what lies in the store: the record, and what was put aside.
func (w *world) files() (path, record, aside string) {
	w.Helper()
	for k, v := range w.store.all() {
		switch {
		case strings.HasSuffix(k, ".refused"):
			aside = v
		case path != "":
			w.Fatalf("there are two records: %s and %s", path, k)
		default:
			path, record = k, v
		}
	}
	return path, record, aside
}

// sealedBy reads the id of the key in an envelope, "" for clear text.
func (w *world) sealedBy(record string) string {
	w.Helper()
	var e struct {
		Version int    `json:"version"`
		KeyID   string `json:"key_id"`
		Sealed  []byte `json:"sealed"`
		Refresh string `json:"refresh_token"`
	}
	if err := json.Unmarshal([]byte(record), &e); err != nil {
		w.Fatal(err)
	}
	if (e.Version == 2) != (e.KeyID != "") || (e.KeyID != "") != (len(e.Sealed) > 0) || (e.KeyID == "") != (e.Refresh != "") {
		w.Fatalf("neither sealed nor clear: %s", record)
	}
	return e.KeyID
}

// put writes the store as an operator does.
func (w *world) put(path, text string) {
	w.Helper()
	if err := w.store.Save(context.Background(), path, []byte(text)); err != nil {
		w.Fatal(err)
	}
}

func (w *world) setKeys(s *flow.Session, keys ...flow.Key) {
	w.Helper()
	w.cfg.Keys = keys
	if err := s.SetConfig(w.cfg); err != nil {
		w.Fatal(err)
	}
	w.sleep(flow.LookEvery)
}

func TestWhatIsStoredIsSealed(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Keys = []flow.Key{key(t, 1)}
		s, stop := w.run()
		var secrets []string
		look := func(when string) {
			w.Helper()
			_, record, _ := w.files()
			for _, s := range append(secrets, "token", "code", "demo", s.Status().Account.Label()) {
				for _, form := range []string{s, base64.StdEncoding.EncodeToString([]byte(s)), hex.EncodeToString([]byte(s))} {
					if s != "" && strings.Contains(record, form) {
						w.Fatalf("%s: %q is to be read in %s", when, s, record)
					}
				}
			}
			if len(record) < 500 {
				w.Fatalf("%s: stored is %q", when, record)
			}
		}
		st, err := s.Login(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		secrets = append(secrets, st.Login.UserCode)
		look("pending")
		w.as.ApproveAll()
		w.sleep(5 * time.Second)
		for range 2 {
			secrets = append(secrets, w.wantToken(s).Value().Reveal())
			look("logged in")
			if _, err := s.Refresh(w.Context()); err != nil {
				w.Fatal(err)
			}
		}
		for _, r := range w.as.Requests() {
			secrets = append(secrets, r.Form.Get("refresh_token"), r.Form.Get("device_code"))
		}
		look("refreshed")
		_, first, _ := w.files()
		token := w.wantToken(s)
		stop()

		s, _ = w.run()
		if !w.wantToken(s).Value().Equal(token.Value()) {
			w.Fatal("another token after the restart")
		}
		w.wantCount(flowtest.Device, 1)
		if _, again, _ := w.files(); again != first {
			w.Fatal("a restart with the same key writes the record anew")
		}
	})
}

// Every form of a key is the same key.
func TestOneKeyInSeveralForms(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Keys = []flow.Key{key(t, 200)}
		_, stop := w.loggedIn()
		stop()
		raw, err := base64.StdEncoding.DecodeString(keyText(200))
		if err != nil {
			w.Fatal(err)
		}
		for _, text := range []string{hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)), base64.RawURLEncoding.EncodeToString(raw), keyText(200) + "\n"} {
			k, err := flow.ParseKey(flow.NewSecret(text))
			if err != nil {
				w.Fatal(err)
			}
			w.cfg.Keys = []flow.Key{k}
			s, stop := w.run()
			w.wantToken(s)
			stop()
		}
	})
}

// S68 of the scorecard.
func TestKeysRotateBothWays(t *testing.T) {
	one, two, off := key(t, 1), key(t, 2), flow.Key{}
	steps := []struct {
		name  string
		keys  []flow.Key
		clear bool
	}{
		{"clear", nil, true},
		{"sealed", []flow.Key{one}, false},
		{"sealed anew", []flow.Key{two, one}, false},
		{"without the old key", []flow.Key{two}, false},
		{"back to the old key", []flow.Key{one, two}, false},
		{"off", []flow.Key{off, one}, true},
		{"no key", nil, true},
		{"off alone", []flow.Key{off}, true},
		{"sealed once more", []flow.Key{two}, false},
	}
	check := func(w *world, s *flow.Session, name string, clear bool) string {
		w.Helper()
		w.wantToken(s)
		w.wantState(s, flow.StateAuthorized)
		w.wantError(s, "", "")
		_, record, aside := w.files()
		id := w.sealedBy(record)
		if (id == "") != clear {
			w.Fatalf("%s: sealed by %q", name, id)
		}
		if aside != "" {
			w.Fatalf("%s: something was put aside", name)
		}
		return id
	}
	for _, reload := range []bool{false, true} {
		name := map[bool]string{false: "restart", true: "reload"}[reload]
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, stop := w.loggedIn()
				ids := map[string]string{}
				for _, step := range steps {
					if reload {
						w.setKeys(s, step.keys...)
					} else {
						stop()
						w.cfg.Keys = step.keys
						s, stop = w.run()
						w.sleep(flow.LookEvery)
					}
					ids[step.name] = check(w, s, step.name, step.clear)
				}
				if ids["sealed"] == ids["sealed anew"] || ids["sealed anew"] != ids["without the old key"] || ids["back to the old key"] != ids["sealed"] {
					w.Fatalf("the first key does not seal: %v", ids)
				}
				w.wantCount(flowtest.Device, 1)
			})
		})
	}
}

func TestSealedRecordThatWasTamperedWithIsPutAside(t *testing.T) {
	for name, tamper := range map[string]func(record string) string{
		"truncated": func(s string) string { return s[:len(s)/2] },
		"one letter of it": func(s string) string {
			i := len(s) / 2
			return s[:i] + string("AB"[s[i]&1]) + s[i+1:]
		},
		"no base64":     func(s string) string { return strings.Replace(s, `"sealed":"`, `"sealed":"?`, 1) },
		"nothing in it": func(s string) string { return s[:strings.Index(s, `"sealed":"`)] + `"sealed":""}` },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.cfg.Keys = []flow.Key{key(t, 1)}
				_, stop := w.loggedIn()
				stop()
				path, record, _ := w.files()
				bad := tamper(record)
				w.put(path, bad)
				s, _ := w.run()
				w.wantState(s, flow.StateLoginRequired)
				w.wantError(s, flow.CodeStorageFailed, flow.ActionReauthorize)
				if _, _, aside := w.files(); aside != bad {
					w.Fatal("it is not kept")
				}
				w.login(s)
			})
		})
	}
}

// The same key, the same client, another session: what is sealed for one does not
// open for the other.
func TestSealedRecordOpensInItsPlaceOnly(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Keys = []flow.Key{key(t, 1)}
		w.cfg.Name = "one"
		_, stop := w.loggedIn()
		stop()
		path, record, _ := w.files()
		w.put(strings.Replace(path, "one", "two", 1), record)
		w.cfg.Name = "two"
		s, _ := w.run()
		w.wantState(s, flow.StateLoginRequired)
		w.wantError(s, flow.CodeStorageFailed, flow.ActionReauthorize)
		if d := s.Status().Error.Description; !strings.Contains(d, "sealed for another session") {
			w.Fatalf("%s", d)
		}
		all := w.store.all()
		if all[path] != record || all[strings.Replace(path, "one", "two", 1)+".refused"] != record {
			w.Fatal("it is not kept")
		}
	})
}

func TestStoreThatFailsIsNoSealedRecord(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Keys = []flow.Key{key(t, 1)}
		_, stop := w.loggedIn()
		stop()
		w.store.setFault(func(op, _ string) error {
			if op == "load" {
				return errors.New("the network is down")
			}
			return nil
		})
		s, _ := w.run()
		w.sleep(time.Second)
		w.wantState(s, flow.StateUnavailable)
		w.wantError(s, flow.CodeStorageFailed, flow.ActionRetry)
		w.store.setFault(nil)
		w.sleep(30 * time.Second)
		w.wantToken(s)
	})
}
