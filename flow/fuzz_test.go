package flow

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
)

// seeds are shapes of answers, good and bad, for every decoder.
var seeds = []string{
	`{"access_token":"at","token_type":"Bearer","expires_in":3600,"refresh_token":"rt","scope":"a b"}`,
	`{"accessToken":"at","expiresIn":"28800","refreshToken":"rt","scope":["a"]}`,
	`{"access_token":"a\r\nb","refresh_token":"rt","expires_in":NaN}`,
	`{"access_token":"e30.eyJleHAiOjk0NjY4NDgxMH0.x","id_token":"e30.e30.x","expires_in":1e400}`,
	`{"device_code":"dc","user_code":"A-B","verification_uri":"https://as.example/d","verification_uri_complete":"https://as.example/d?c=A-B","expires_in":900,"interval":5}`,
	`{"code":"dc","user_code":"A","verification_url":"x","expire_in":-1,"interval":1e-300}`,
	`{"error":"authorization_pending","error_description":"later"}`, `{"error":"slow_down","interval":22}`,
	`{"error":{"code":"invalid_grant","message":"gone"}}`, `{"error_code":"x"}`, `{"error":"the-dev\u200bice-code","error_description":"the%2Ddevice-code"}`, `{"message":"y"}`, `{"error":null}`,
	`access_token=at&token_type=bearer&scope=a%2Cb`, `error=slow_down&interval=5`, `device_code=d&user_code=u&verification_uri=v`,
	`{"issuer":"https://as.example","device_authorization_endpoint":"https://as.example/d","token_endpoint":"https://as.example/t"}`,
	`{"issuer":"https://as.example/","token_endpoint":"http://as.example/t"}`, `{"issuer":"https://as.example","token_endpoint":"http://localhost/t"}`, `{"issuer":"https://evil.example"}`,
	"\xef\xbb\xbf{}", `{`, `[]`, `null`, `"x"`, `<html>`, ``, "\x00", `{"a":Infinity,"b":-NaN,"c":"\"NaN","d":1e4}`,
}

var contentTypes = []string{"application/json", "application/x-www-form-urlencoded", "text/html", ""}

// isClean reports whether people can be shown s.
func isClean(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func FuzzTokenResponse(f *testing.F) {
	for i, s := range seeds {
		f.Add(200, contentTypes[i%len(contentTypes)], s)
		f.Add(400, "application/json", s)
		f.Add(200, "application/json", s)
	}
	f.Fuzz(func(t *testing.T, status int, contentType, body string) {
		g, err := canned(status, http.Header{"Content-Type": {contentType}}, body).refresh(t.Context(), NewSecret("the-old-one"), Want{})
		if err != nil {
			e := asError("", err)
			if e.Kind == KindReauthorize && (status == 429 || status >= 500 || !strings.Contains(strings.ToLower(body), "grant") && !strings.Contains(strings.ToLower(body), "bad")) {
				t.Errorf("the login is given up over status %d", status)
			}
			if !isClean(e.Code) || !isClean(e.Description) {
				t.Errorf("%q, %q", e.Code, e.Description)
			}
		}
		if err == nil && (g == nil || !bearerSyntax(g.access.Reveal())) {
			t.Error("success without a usable access token")
		}
		if g != nil && (g.lifetime < 0 || g.lifetime > maxTokenLifetime) {
			t.Errorf("lifetime %v", g.lifetime)
		}
		var m struct {
			Access  any `json:"access_token"`
			Refresh any `json:"refresh_token"`
		}
		if d := json.NewDecoder(strings.NewReader(body)); status == 200 && strings.HasPrefix(body, "{") && d.Decode(&m) == nil && exact(body) {
			access, _ := m.Access.(string)
			refresh, _ := m.Refresh.(string)
			if access != "" && refresh != "" && len(refresh) <= maxToken && (g == nil || g.refresh.Reveal() != refresh) {
				t.Error("the refresh token is lost")
			}
		}
	})
}

// exact reports whether no name of the object is there in two spellings, which
// encoding/json does not tell apart.
func exact(body string) bool {
	var m map[string]json.RawMessage
	if json.NewDecoder(strings.NewReader(body)).Decode(&m) != nil {
		return false
	}
	for k := range m {
		if n := fieldName(k); (n == "accesstoken" || n == "refreshtoken") && k != "access_token" && k != "refresh_token" {
			return false
		}
	}
	return true
}

func FuzzDeviceResponse(f *testing.F) {
	for i, s := range seeds {
		f.Add(200, contentTypes[i%len(contentTypes)], s)
		f.Add(200, "application/json", s)
	}
	f.Fuzz(func(t *testing.T, status int, contentType, body string) {
		before := time.Now().Round(0)
		d, err := canned(status, http.Header{"Content-Type": {contentType}}, body).authorize(t.Context())
		if err != nil {
			return
		}
		if d.code.IsZero() || d.login.UserCode == "" || d.login.VerificationURI == "" {
			t.Errorf("half a login: %+v", d)
		}
		if len(d.code.Reveal()) > maxCode || len(d.login.UserCode) > maxUserCode || len(d.login.VerificationURI)+len(d.login.VerificationURIComplete) > 2*maxURI {
			t.Error("a login without bounds")
		}
		if d.interval < minInterval || d.interval > maxCodeLifetime {
			t.Errorf("interval %v", d.interval)
		}
		if life := d.login.ExpiresAt.Sub(before); life < 0 || life > maxCodeLifetime+time.Minute {
			t.Errorf("lifetime %v", life)
		}
	})
}

func FuzzErrorResponse(f *testing.F) {
	for i, s := range seeds {
		f.Add(400, contentTypes[i%len(contentTypes)], "7", s)
		f.Add(429, "application/json", "", s)
	}
	f.Fuzz(func(t *testing.T, status int, contentType, retry, body string) {
		const secret = "the-device-code"
		h := http.Header{"Content-Type": {contentType}, "Retry-After": {retry}}
		_, err := canned(status, h, body).poll(t.Context(), NewSecret(secret), Secret{})
		if err == nil {
			return
		}
		e := asError("", err)
		text := e.Error() + describe(e)
		if !isClean(e.Code) || !isClean(e.Description) || !isClean(describe(e)) || len([]rune(text)) > 1200 {
			t.Errorf("%q", text)
		}
		if strings.Contains(text, secret) {
			t.Errorf("a secret in %q", text)
		}
		if e.RetryAfter < 0 || e.RetryAfter > maxRetryAfter || e.Interval < 0 || e.Interval > maxCodeLifetime {
			t.Errorf("retry %v, interval %v", e.RetryAfter, e.Interval)
		}
		if (status == 429 || status >= 500) && e.Kind != KindTemporary && e.Kind != KindSlowDown {
			t.Errorf("kind %d at status %d", e.Kind, status)
		}
		if e.Kind == KindReauthorize {
			t.Error("a poll has no refresh token to be dead")
		}
	})
}

func FuzzDiscovery(f *testing.F) {
	for _, s := range seeds {
		f.Add(200, s)
		f.Add(404, s)
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		c := canned(status, nil, body)
		c.Issuer = "https://as.example"
		e, err := c.discover(t.Context())
		if err != nil {
			if x := asError("", err); x.Op != opDiscovery || x.Error() == "" {
				t.Errorf("%+v", x)
			}
			return
		}
		if status != 200 || !strings.Contains(body, "as.example") && !strings.Contains(body, `\`) {
			t.Error("metadata out of nothing")
		}
		for _, u := range []string{e.DeviceAuthorization, e.Token, e.Revocation, e.UserInfo} {
			if u != "" && (checkEndpoint(u, false) != nil || !strings.HasPrefix(strings.ToLower(u), "https:")) {
				t.Errorf("endpoint %q", u)
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	full := &record{
		fingerprint: "f", generation: 3, access: NewSecret("at"), refresh: NewSecret("rt"),
		expiry: time.Unix(1e9, 0), obtained: time.Unix(1e9, 0), refreshAt: time.Unix(1e9, 0), loginAt: time.Unix(1e9, 0),
		scope: []string{"a"}, account: &Account{Subject: "s"},
		pending: &pendingLogin{code: NewSecret("dc"), interval: time.Second, info: LoginInfo{UserCode: "A", ExpiresAt: time.Unix(1e9, 0)}},
	}
	b, err := full.encode(time.Now(), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.Replace(b, []byte(`"at"`), []byte(`"a t"`), 1))
	f.Add(bytes.Replace(b, []byte(`:1,`), []byte(`:2,`), 1))
	f.Add(bytes.Replace(b, []byte(`1000000000`), []byte(`0`), 1))
	f.Add(bytes.Replace(b, []byte(`"interval_ns":1000000000`), []byte(`"interval_ns":0`), 1))
	f.Add(b[:len(b)/2])
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b, "f")
		if err != nil {
			if !errors.Is(err, ErrRecord) || !isClean(err.Error()) {
				t.Errorf("%v", err)
			}
			return
		}
		var s storedRecord
		if json.Unmarshal(b, &s) != nil || s.Refresh != r.refresh.Reveal() {
			t.Error("the refresh token is lost")
		}
		if !r.access.IsZero() && !bearerSyntax(r.access.Reveal()) {
			t.Error("an access token that cannot be used")
		}
		if p := r.pending; p != nil && (p.interval < minInterval || p.interval > maxCodeLifetime || s.Pending.Interval <= 0 && p.interval != defaultInterval) {
			t.Errorf("interval %v", p.interval)
		}
		again, err := r.encode(time.Time{}, time.Time{})
		if err != nil {
			return // a year beyond 9999
		}
		r2, err := decodeRecord(again, "f")
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		third, err := r2.encode(time.Time{}, time.Time{})
		if err != nil || !bytes.Equal(again, third) || !reflect.DeepEqual(r.scope, r2.scope) && len(r.scope)+len(r2.scope) > 0 {
			t.Errorf("%s became %s", again, third)
		}
	})
}

func FuzzSealedRecord(f *testing.F) {
	key := func(b string) Key { return Key{id: b, secret: NewSecret(strings.Repeat(b, keySize))} }
	with := func(keys ...Key) *client { return newClient(Config{StorageName: "s", Keys: keys}, "f") }
	full, err := (&record{fingerprint: "f", generation: 3, refresh: NewSecret("rt")}).encode(time.Unix(1e9, 0), time.Unix(1e9, 0))
	if err != nil {
		f.Fatal(err)
	}
	plain := string(full)
	c := with(key("a"), key("b"))
	b, err := c.seal(full)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range append(seeds, plain, string(b), string(b[:len(b)/2]), `{"version":2}`, `{"version":2,"sealed":null}`, `{"version":2,"sealed":""}`,
		`{"version":2,"key_id":"a","sealed":"AAAA"}`, `{"version":2,"key_id":"c\u202e","sealed":"AAAA"}`, `{"version":2,"key_id":{},"sealed":"AAAA"}`) {
		f.Add([]byte(s))
	}
	f.Add(bytes.Replace(b, []byte(`:2,`), []byte(`:3,`), 1))
	f.Add(bytes.Replace(b, []byte(`"a"`), []byte(`"b"`), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What comes from a store: it opens, is no envelope, or is refused.
		got, stale, err := c.open(b)
		switch {
		case err != nil:
			if !errors.Is(err, ErrRecord) || !isClean(err.Error()) || got != nil {
				t.Errorf("%v", err)
			}
		case bytes.Equal(got, b):
			if !stale {
				t.Error("clear text is as good as sealed")
			}
		case string(got) != plain:
			t.Errorf("it opens, but nobody has sealed it: %q", got)
		}

		// What goes there: our key opens it in its place, and nothing else does.
		sealed, err := c.seal(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, stale, err := c.open(sealed); err != nil || stale || !bytes.Equal(got, b) {
			t.Errorf("%q became %q (%v)", b, got, err)
		}
		if got, stale, err := with(key("b"), key("a")).open(sealed); err != nil || !stale || !bytes.Equal(got, b) {
			t.Errorf("behind a newer key %q became %q (%v)", b, got, err)
		}
		for _, keys := range [][]Key{nil, {{}}, {key("b")}} {
			if _, _, err := with(keys...).open(sealed); !errors.Is(err, errSealed) {
				t.Errorf("%v", err)
			}
		}
		elsewhere := newClient(Config{StorageName: "t", Keys: c.Keys}, "f")
		if _, _, err := elsewhere.open(sealed); !errors.Is(err, ErrRecord) || errors.Is(err, errSealed) {
			t.Errorf("in another session's place: %v", err)
		}
		// A release that knows nothing of sealing leaves it alone.
		if _, err := decodeRecord(sealed, "f"); !errors.Is(err, errNewer) {
			t.Errorf("%v", err)
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"7", "0", "-1", "1000000000", "99999999999999999999999", "Fri, 02 Jan 2026 03:04:15 GMT", "soon", " 8 ", "７"} {
		f.Add(s, "")
		f.Add(s, "Fri, 02 Jan 2026 03:04:05 GMT")
	}
	f.Fuzz(func(t *testing.T, value, date string) {
		h := http.Header{"Retry-After": {value}, "Date": {date}}
		if d := retryAfter(h, time.Now()); d < 0 || d > maxRetryAfter {
			t.Errorf("%v", d)
		}
	})
}

func FuzzNullBareWords(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Add([]byte(`[1e5,1E+5,-1.5e-3,true,false,null,"NaN \\\" NaN",{"a":[]}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		out := nullBareWords(b)
		if json.Valid(b) && !bytes.Equal(out, b) {
			t.Errorf("%q became %q", b, out)
		}
	})
}
