package flow_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// keyText is a key as it stands in a file; the same n gives the same key.
func keyText(n byte) string {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(i)*7 + n
	}
	return base64.StdEncoding.EncodeToString(b)
}

func key(t testing.TB, n byte) flow.Key {
	t.Helper()
	k, err := flow.ParseKey(flow.NewSecret(keyText(n)))
	if err != nil || k.IsZero() {
		t.Fatalf("key %d: %v", n, err)
	}
	return k
}

func TestKeysAreRandomBytesInAnyUsualForm(t *testing.T) {
	raw, err := base64.StdEncoding.DecodeString(keyText(200)) // both alphabets differ in it
	if err != nil || !strings.ContainsAny(keyText(200), "+/") {
		t.Fatalf("the key is no good for this test: %v", err)
	}
	// Which key it is shows in what it seals only; see the tests of a session.
	for name, text := range map[string]string{
		"base64": keyText(200), "without padding": base64.RawStdEncoding.EncodeToString(raw),
		"for URLs": base64.URLEncoding.EncodeToString(raw), "for URLs without padding": base64.RawURLEncoding.EncodeToString(raw),
		"hex": hex.EncodeToString(raw), "HEX": strings.ToUpper(hex.EncodeToString(raw)), "with a line end": " " + keyText(200) + "\r\n",
	} {
		if k, err := flow.ParseKey(flow.NewSecret(text)); err != nil || k.IsZero() {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "a pass phrase": "correct horse battery staple", "32 letters": strings.Repeat("ab", 16),
		"31 bytes": base64.StdEncoding.EncodeToString(raw[:31]), "33 bytes": base64.StdEncoding.EncodeToString(append(raw, 0)),
		"31 bytes in hex": hex.EncodeToString(raw[:31]), "raw bytes": string(raw), "two keys": keyText(1) + " " + keyText(2),
	} {
		k, err := flow.ParseKey(flow.NewSecret(text))
		if err == nil || !k.IsZero() || !strings.Contains(err.Error(), "openssl rand -base64 32") || len(text) > 3 && strings.Contains(err.Error(), text[:4]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeysAreNeverShown(t *testing.T) {
	k := key(t, 1)
	raw, _ := base64.StdEncoding.DecodeString(keyText(1))
	things := []any{k, &k, []flow.Key{k}, flow.Config{Keys: []flow.Key{k}}, struct{ k flow.Key }{k}}
	for _, thing := range things {
		text := fmt.Sprintf("%v %+v %#v %s %q %x %d", thing, thing, thing, thing, thing, thing, thing)
		if b, err := json.Marshal(thing); err == nil {
			text += string(b)
		}
		var log strings.Builder
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "thing", thing)
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "thing", thing)
		text += log.String()
		for _, secret := range []string{string(raw), hex.EncodeToString(raw), keyText(1), fmt.Sprint(raw), fmt.Sprintf("%q", raw)} {
			if strings.Contains(text, secret) {
				t.Errorf("%T shows the key", thing)
			}
		}
	}
}
