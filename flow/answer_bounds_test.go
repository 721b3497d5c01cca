package flow

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

// object is a JSON object with these members besides those of base.
func object(t *testing.T, base map[string]any, name string, value any) string {
	t.Helper()
	m := map[string]any{name: value}
	for k, v := range base {
		if k != name {
			m[k] = v
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A user_code of 200 KB was a record of more than a megabyte, which no storage took back.
func TestAnAnswerWithAnEndlessCodeIsRefused(t *testing.T) {
	good := map[string]any{
		"device_code": "dc", "user_code": "A-B", "verification_uri": "https://as.example/d", "verification_uri_complete": "https://as.example/d?c",
	}
	for name, most := range map[string]int{"device_code": 16 << 10, "user_code": 256, "verification_uri": 8 << 10} {
		if _, err := canned(200, nil, object(t, good, name, strings.Repeat("<", most))).authorize(t.Context()); err != nil {
			t.Errorf("%s of %d bytes: %v", name, most, err)
		}
		_, err := canned(200, nil, object(t, good, name, strings.Repeat("<", most+1))).authorize(t.Context())
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeInvalidResponse || !strings.Contains(e.Error(), name) || len(e.Error()) > 300 {
			t.Errorf("%s of %d bytes: %v", name, most+1, err)
		}
	}
	// The address with the code in it is a courtesy.
	d, err := canned(200, nil, object(t, good, "verification_uri_complete", strings.Repeat("x", 8<<10+1))).authorize(t.Context())
	if err != nil || d.login.VerificationURIComplete != "" || d.login.VerificationURI == "" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestTokensOfAnyLikelyLengthAreKept(t *testing.T) {
	good := map[string]any{"access_token": "at", "refresh_token": "rt"}
	for _, n := range []int{60 << 10, 256 << 10} {
		long := strings.Repeat("r", n)
		g, err := canned(200, nil, object(t, good, "refresh_token", long)).refresh(t.Context(), NewSecret("old"), Want{})
		if err != nil || g.refresh.Reveal() != long {
			t.Errorf("a refresh token of %d bytes: %v", n, err)
		}
		g, err = canned(200, nil, object(t, good, "access_token", long)).refresh(t.Context(), NewSecret("old"), Want{})
		if err != nil || g.access.Reveal() != long {
			t.Errorf("an access token of %d bytes: %v", n, err)
		}
	}
	g, err := canned(200, nil, object(t, good, "refresh_token", strings.Repeat("r", 256<<10+1))).refresh(t.Context(), NewSecret("old"), Want{})
	if err != nil || !g.refresh.IsZero() || g.access.Reveal() != "at" {
		t.Errorf("a refresh token that is none: %v", err)
	}
	for _, scope := range []any{strings.Repeat("ab ", 100_000), make([]string, 0), []string{"ab", strings.Repeat("c", 20_000)}} {
		g, err := canned(200, nil, object(t, good, "scope", scope)).refresh(t.Context(), NewSecret("old"), Want{})
		if err != nil || len(strings.Join(g.scope, " ")) > 16<<10 {
			t.Errorf("%d scopes, %v", len(g.scope), err)
		}
	}
}

// Whatever a server says, a Store that takes MaxRecord takes the record.
func TestTheLongestRecordIsWithinItsBound(t *testing.T) {
	rude := func(n int) string { return strings.Repeat("\x01", n) } // six bytes each in JSON
	r := &record{
		fingerprint: "f", access: NewSecret(strings.Repeat("<", maxToken)), refresh: NewSecret(rude(maxToken)),
		scope: strings.Split(strings.Repeat("\x01 ", maxList/2), " "), claims: make(claims),
		pending: &pendingLogin{code: NewSecret(rude(maxCode)), info: LoginInfo{UserCode: rude(maxUserCode), VerificationURI: rude(maxURI), VerificationURIComplete: rude(maxURI)}},
	}
	for _, name := range []string{"sub", "email", "preferred_username", "name", "other"} {
		r.claims[name] = rude(maxClaim)
	}
	plain, err := r.encode(time.Now(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseKey(NewSecret(strings.Repeat("ab", keySize)))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := newClient(Config{Keys: []Key{key}}, "f").seal(plain)
	if err != nil || len(sealed) > MaxRecord || len(sealed) < MaxRecord/4 {
		t.Errorf("%d bytes, %v", len(sealed), err)
	}
}
