package flow

import (
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// canned is a client whose server always gives the same answer.
func canned(status int, header http.Header, body string) *client {
	if header == nil {
		header = http.Header{"Content-Type": {"application/json"}}
	}
	return &client{Config: Config{
		Endpoints: Endpoints{DeviceAuthorization: "https://as.example/device", Token: "https://as.example/token"},
		ClientID:  "c",
		HTTP: answers(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		}),
	}.withDefaults()}
}

// kindOf sends an answer through the client and gives the kind of its error; ok
// means success.
func kindOf(t *testing.T, op string, status int, header http.Header, body string) (kind Kind, ok bool) {
	t.Helper()
	c := canned(status, header, body)
	var err error
	switch op {
	case opDevice:
		_, err = c.authorize(t.Context())
	case opPoll:
		_, err = c.poll(t.Context(), NewSecret("the-device-code"), Secret{})
	case opRefresh:
		_, err = c.refresh(t.Context(), NewSecret("the-refresh-token"), Want{})
	}
	if err == nil {
		return 0, true
	}
	e, isError := err.(*Error)
	if !isError {
		t.Fatalf("error of type %T", err)
	}
	return e.Kind, false
}

var (
	formType = http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"}}
	htmlType = http.Header{"Content-Type": {"text/html"}}
	textType = http.Header{"Content-Type": {"text/plain"}}
)

// TestErrorsAsServersSendThem has the shapes of real servers, with values of our
// own.
func TestErrorsAsServersSendThem(t *testing.T) {
	for _, tc := range []struct {
		op     string
		status int
		header http.Header
		body   string
		want   Kind
	}{
		// The name first, the status second.
		{opPoll, 400, nil, `{"error":"authorization_pending"}`, KindPending},
		{opPoll, 403, nil, `{"error":"authorization_pending","error_description":"not yet"}`, KindPending},
		{opPoll, 428, nil, `{"error":"authorization_pending"}`, KindPending},
		{opPoll, 200, nil, `{"error":"authorization_pending","error_uri":"https://as.example/help"}`, KindPending},
		{opPoll, 401, nil, `{"error":"Authorization_Pending"}`, KindPending},
		{opPoll, 200, formType, `error=authorization_pending&error_description=not+yet`, KindPending},
		{opPoll, 429, nil, `{"error":"slow_down"}`, KindSlowDown},
		{opPoll, 403, nil, `{"error":"slow_down"}`, KindSlowDown},
		{opPoll, 200, formType, `error=slow_down&interval=22`, KindSlowDown},
		{opPoll, 200, textType, `error=slow_down&interval=22`, KindSlowDown},
		{opDevice, 403, nil, `{"error_code":"rate_limit_exceeded"}`, KindTemporary},
		{opPoll, 400, nil, `{"message":"authorization_pending"}`, KindPending},
		{opPoll, 400, nil, `{"error":{"code":"authorization_pending","message":"not yet"}}`, KindPending},
		{opPoll, 400, nil, `{"error":"","error_code":"expired_token"}`, KindExpired},
		// 429 outranks the name.
		{opRefresh, 429, nil, `{"error":"invalid_grant","error_description":"API call exceeded rate limit"}`, KindTemporary},
		{opPoll, 429, nil, `{"error":"invalid_grant"}`, KindTemporary},
		{opDevice, 429, nil, `{"error":"too_many_user_codes"}`, KindTemporary},
		{opDevice, 400, nil, `{"error":"too_many_user_codes"}`, KindTemporary},
		// Aliases.
		{opPoll, 400, nil, `{"error":"authorization_declined"}`, KindDenied},
		{opPoll, 401, nil, `{"error":"access_denied"}`, KindDenied},
		{opPoll, 400, nil, `{"error":"expired_token"}`, KindExpired},
		{opPoll, 200, nil, `{"error":"token_expired"}`, KindExpired},
		{opPoll, 400, nil, `{"error":"expired"}`, KindExpired},
		{opPoll, 400, nil, `{"error":"invalid_code_pair"}`, KindExpired},
		{opPoll, 400, nil, `{"error":"bad_verification_code"}`, KindExpired},
		{opPoll, 400, nil, `{"error":"invalid device code"}`, KindExpired},
		{opPoll, 403, nil, `{"error":"invalid_grant"}`, KindExpired},
		// Temporary.
		{opPoll, 500, nil, `{"error":"server_error"}`, KindTemporary},
		{opRefresh, 503, nil, `{"error":"invalid_grant"}`, KindTemporary},
		{opRefresh, 408, nil, `{"error":"invalid_grant"}`, KindTemporary},
		{opRefresh, 400, nil, `{"error":"temporarily_unavailable"}`, KindTemporary},
		{opRefresh, 200, htmlType, `<html>welcome</html>`, KindTemporary},
		{opRefresh, 200, nil, ``, KindTemporary},
		{opRefresh, 200, nil, `{}`, KindTemporary},
		{opRefresh, 200, nil, `[]`, KindTemporary},
		{opRefresh, 200, nil, `"access_token"`, KindTemporary},
		{opRefresh, 200, nil, `null`, KindTemporary},
		{opRefresh, 204, nil, ``, KindTemporary},
		{opRefresh, 404, htmlType, `<html>`, KindTemporary},
		{opPoll, 404, htmlType, `<html>nothing here</html>`, KindTemporary},
		{opPoll, 400, nil, ``, KindTemporary},
		{opDevice, 200, nil, `{"user_code":"A","verification_uri":"https://as.example/d"}`, KindTemporary},
		{opDevice, 200, htmlType, `<a href="/x?a=1&error=invalid_client">`, KindTemporary},
		// A refresh that is refused in other words is doubtful.
		{opRefresh, 400, nil, `{"error":"invalid_grant"}`, KindReauthorize},
		{opRefresh, 403, nil, `{"error":"invalid_grant"}`, KindReauthorize},
		{opRefresh, 400, nil, `{"error":"invalid_request"}`, KindDoubtful},
		{opRefresh, 400, nil, `{"error":"The refresh token is no longer good."}`, KindDoubtful},
		{opRefresh, 400, nil, ``, KindDoubtful},
		{opRefresh, 403, nil, `{"error":"access_denied"}`, KindDoubtful},
		// The client itself.
		{opRefresh, 401, nil, `{"error":"invalid_client"}`, KindConfiguration},
		{opPoll, 400, nil, `{"error":"unauthorized_client"}`, KindConfiguration},
		{opDevice, 400, nil, `{"error":"invalid_scope"}`, KindConfiguration},
		{opDevice, 400, formType, `error=device_flow_disabled`, KindConfiguration},
		{opPoll, 200, nil, `{"error":"incorrect_client_credentials"}`, KindConfiguration},
		{opPoll, 400, nil, `{"error":"invalid_request"}`, KindConfiguration},
		{opDevice, 307, http.Header{"Location": {"https://evil.example"}}, ``, KindConfiguration},
		{opRefresh, 302, http.Header{"Location": {"https://evil.example"}}, ``, KindConfiguration},
	} {
		got, ok := kindOf(t, tc.op, tc.status, tc.header, tc.body)
		if ok || got != tc.want {
			t.Errorf("%s: %d %s: kind %d (ok %v), want %d", tc.op, tc.status, tc.body, got, ok, tc.want)
		}
	}
}

func TestTokenResponsesAsServersSendThem(t *testing.T) {
	for name, tc := range map[string]struct {
		header http.Header
		body   string
		scope  []string
		life   time.Duration
		rotate string
	}{
		"plain":             {nil, `{"access_token":"at","token_type":"Bearer","expires_in":3600,"refresh_token":"rt","scope":"a b"}`, []string{"a", "b"}, time.Hour, "rt"},
		"camel case":        {nil, `{"accessToken":"at","tokenType":"Bearer","expiresIn":28800,"refreshToken":"rt"}`, nil, 8 * time.Hour, "rt"},
		"form":              {formType, `access_token=at&token_type=bearer&scope=repo%2Cgist`, []string{"repo", "gist"}, 0, ""},
		"numbers as text":   {nil, `{"access_token":"at","expires_in":"3599","expires_on":"1700003599"}`, nil, 3599 * time.Second, ""},
		"no lifetime":       {nil, `{"access_token":"at","scope":""}`, nil, 0, ""},
		"scopes in a list":  {nil, `{"access_token":"at","scope":["a","b",3]}`, []string{"a", "b"}, 0, ""},
		"byte order mark":   {nil, "\xef\xbb\xbf" + ` {"access_token":"at"}`, nil, 0, ""},
		"not a number":      {nil, `{"access_token":"at","expires_in":NaN,"refresh_token":"rt NaN"}`, nil, 0, "rt NaN"},
		"both spellings":    {nil, `{"refreshToken":"wrong","refresh_token":"rt","RefreshToken":"wrong","access_token":"at"}`, nil, 0, "rt"},
		"an error of zero":  {nil, `{"access_token":"at","refresh_token":"rt","error_code":0,"error":null}`, nil, 0, "rt"},
		"an error as well":  {nil, `{"access_token":"at","refresh_token":"rt","error":"none"}`, nil, 0, "rt"},
		"two texts":         {nil, `{"access_token":"at"}{"x":1}`, nil, 0, ""},
		"shorter JWT":       {http.Header{"Date": {"Sat, 01 Jan 2000 00:00:00 GMT"}}, `{"access_token":"e30.eyJleHAiOjk0NjY4NDgxMH0.x","expires_in":3600}`, nil, 10 * time.Second, ""},
		"longer JWT":        {http.Header{"Date": {"Sat, 01 Jan 2000 00:00:00 GMT"}}, `{"access_token":"e30.eyJleHAiOjk0NjY4NDgxMH0.x","expires_in":5}`, nil, 5 * time.Second, ""},
		"JWT of long ago":   {http.Header{"Date": {"Sat, 01 Jan 2022 00:00:00 GMT"}}, `{"access_token":"e30.eyJleHAiOjk0NjY4NDgxMH0.x","expires_in":60}`, nil, time.Minute, ""},
		"JWT, no lifetime":  {http.Header{"Date": {"Sat, 01 Jan 2000 00:00:00 GMT"}}, `{"access_token":"e30.eyJleHAiOjk0NjY4NDgxMH0.x"}`, nil, 10 * time.Second, ""},
		"expire_in":         {nil, `{"access_token":"at","expire_in":600}`, nil, 10 * time.Minute, ""},
		"refresh lifetimes": {nil, `{"access_token":"at","refresh_token":"rt","refresh_expires_in":0,"refresh_token_expires_in":5}`, nil, 0, "rt"},
	} {
		for _, status := range []int{200, 201} {
			g, err := canned(status, tc.header, tc.body).refresh(t.Context(), NewSecret("the-old-one"), Want{})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			life := g.lifetime
			if life != tc.life || g.refresh.Reveal() != tc.rotate || !reflect.DeepEqual(g.scope, tc.scope) && len(g.scope)+len(tc.scope) > 0 {
				t.Errorf("%s: lifetime %v, scope %q, refresh token %q", name, life, g.scope, g.refresh.Reveal())
			}
		}
	}
}

func TestDeviceResponsesAsServersSendThem(t *testing.T) {
	for name, tc := range map[string]struct {
		header   http.Header
		body     string
		interval time.Duration
		life     time.Duration
	}{
		"plain":           {nil, `{"device_code":"dc","user_code":"MaRX-1","verification_uri":"https://as.example/d","expires_in":900,"interval":5}`, 5 * time.Second, 15 * time.Minute},
		"url, not uri":    {nil, `{"device_code":"dc","user_code":"MaRX-1","verification_url":"https://as.example/d","expires_in":"899","interval":"7"}`, 7 * time.Second, 899 * time.Second},
		"code":            {nil, `{"code":"dc","user_code":"MaRX-1","verification_uri":"https://as.example/d","expires_in":420,"interval":5}`, 5 * time.Second, 7 * time.Minute},
		"camel case":      {nil, `{"deviceCode":"dc","userCode":"MaRX-1","verificationUri":"https://as.example/d","expiresIn":300,"interval":2}`, 2 * time.Second, 5 * time.Minute},
		"expire_in":       {nil, `{"device_code":"dc","user_code":"MaRX-1","verification_url":"https://as.example/d","expire_in":600}`, 5 * time.Second, 10 * time.Minute},
		"no times":        {nil, `{"device_code":"dc","user_code":"MaRX-1","verification_uri":"https://as.example/d"}`, 5 * time.Second, 15 * time.Minute},
		"floats":          {nil, `{"device_code":"dc","user_code":"MaRX-1","verification_uri":"https://as.example/d","expires_in":300.0,"interval":5.5}`, 5500 * time.Millisecond, 5 * time.Minute},
		"absurd":          {nil, `{"device_code":"dc","user_code":"MaRX-1","verification_uri":"https://as.example/d","expires_in":1e30,"interval":1e30}`, 8 * time.Hour, 24 * time.Hour},
		"tiny":            {nil, `{"device_code":"dc","user_code":"MaRX-1","verification_uri":"https://as.example/d","expires_in":60,"interval":1e-9}`, 100 * time.Millisecond, time.Minute},
		"form":            {formType, `device_code=dc&expires_in=900&interval=5&user_code=MaRX-1&verification_uri=https%3A%2F%2Fas.example%2Fd`, 5 * time.Second, 15 * time.Minute},
		"with more":       {nil, `{"Header":null,"device_code":"dc","user_code":"MaRX-1","verification_uri":"https://as.example/d","expires_in":30,"message":"go there"}`, 5 * time.Second, 30 * time.Second},
		"an error, empty": {nil, `{"error":"","device_code":"dc","user_code":"MaRX-1","verification_uri":"https://as.example/d"}`, 5 * time.Second, 15 * time.Minute},
	} {
		before := time.Now()
		d, err := canned(200, tc.header, tc.body).authorize(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		life := d.login.ExpiresAt.Sub(before.Round(0))
		if d.code.Reveal() != "dc" || d.login.UserCode != "MaRX-1" || d.login.VerificationURI != "https://as.example/d" || d.login.VerificationURIComplete != "" {
			t.Errorf("%s: %+v", name, d.login)
		}
		if d.login.ExpiresAt != d.login.ExpiresAt.Round(0) {
			t.Errorf("%s: the code's end is on the monotonic clock, which a sleep stops", name)
		}
		if d.interval != tc.interval || life < tc.life || life > tc.life+time.Minute {
			t.Errorf("%s: interval %v, lifetime %v", name, d.interval, life)
		}
	}
}

func TestWhatAnAnswerTellsIsClean(t *testing.T) {
	body := `{"error":"nope\u0000\u001b[31m","error_description":"your code the-device-code,\n the secret\u202e and\tmore ` + strings.Repeat("x", 1000) + `"}`
	_, err := canned(400, nil, body).poll(t.Context(), NewSecret("the-device-code"), Secret{})
	e := asError(opPoll, err)
	text := e.Error() + describe(e) + statusError(e, time.Time{}).Description
	if strings.Contains(text, "the-device-code") || strings.ContainsAny(text, "\x00\x1b\n\t\u202e") || len(text) > 3000 {
		t.Errorf("%q", text)
	}
	if !strings.HasPrefix(e.Description, "your code [redacted], the secret and more xxx") || e.Code != "nope[31m" {
		t.Errorf("%q, %q", e.Code, e.Description)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"7": 7 * time.Second, " 7 ": 7 * time.Second, "0": 0, "-1": 0, "soon": 0, "7.5": 0, "": 0,
		"3599": 3599 * time.Second, "3600": time.Hour, "1000000000": time.Hour, "99999999999999999999999": time.Hour,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0, "Fri, 02 Jan 2099 03:04:15 GMT": time.Hour,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
	h := http.Header{"Retry-After": {"Fri, 02 Jan 2026 05:00:10 GMT"}, "Date": {"Fri, 02 Jan 2026 05:00:00 GMT"}}
	if got := retryAfter(h, now); got != 10*time.Second {
		t.Errorf("by the server's own clock: %v", got)
	}
}
