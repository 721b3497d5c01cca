package flow

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"
)

var (
	jsonAsHTML  = http.Header{"Content-Type": {"text/html; charset=UTF-8"}} // what PHP says unless told otherwise
	jsonAsBytes = http.Header{"Content-Type": {"application/octet-stream"}}
	problemJSON = http.Header{"Content-Type": {"application/problem+json"}}
	xmlType     = http.Header{"Content-Type": {"application/xml"}}
	noType      = http.Header{}
)

// TestOddErrors has errors as frameworks, gateways and hand-written servers may send
// them. What a person would read out of an answer is what it means; what nobody can
// read ends nothing.
func TestOddErrors(t *testing.T) {
	for _, tc := range []struct {
		op     string
		status int
		header http.Header
		body   string
		want   Kind
	}{
		// The same name in other clothes.
		{opPoll, 400, nil, `{"error":"AUTHORIZATION_PENDING"}`, KindPending},
		{opPoll, 400, nil, `{"error":" authorization_pending "}`, KindPending},
		{opPoll, 400, nil, `{"error":"authorization_pending."}`, KindPending},
		{opPoll, 400, nil, `{"error":"AuthorizationPending"}`, KindPending},
		{opPoll, 400, nil, `{"error":"authorizationPending"}`, KindPending},
		{opPoll, 400, nil, `{"ERROR":"authorization_pending"}`, KindPending},
		{opPoll, 400, nil, `{"errorCode":"authorization_pending","errorSummary":"Not yet."}`, KindPending},
		{opPoll, 400, nil, `{"__type":"AuthorizationPendingException"}`, KindPending},
		{opPoll, 400, nil, `{"__type":"com.example.oidc#SlowDownException","message":"too fast"}`, KindSlowDown},
		{opPoll, 400, nil, `{"error":"pending"}`, KindPending},
		{opPoll, 401, nil, `{"error":"Slow Down"}`, KindSlowDown},
		{opPoll, 503, nil, `{"error":"slow_down"}`, KindSlowDown},
		{opPoll, 400, nil, `{"error":"code_expired"}`, KindExpired},
		{opPoll, 410, nil, `{"error":"device_code_expired"}`, KindExpired},
		{opPoll, 401, nil, `{"error":"ExpiredTokenException"}`, KindExpired},
		{opPoll, 403, nil, `{"error":"authorization_denied"}`, KindDenied},
		{opPoll, 403, nil, `{"error":"user_denied"}`, KindDenied},
		{opRefresh, 400, nil, `{"error":"Invalid_Grant"}`, KindReauthorize},
		{opRefresh, 400, nil, `{"error":"InvalidGrantException"}`, KindReauthorize},
		{opDevice, 401, nil, `{"error":"INVALID_CLIENT"}`, KindConfiguration},
		// In other places.
		{opPoll, 400, nil, `{"error":{"type":"authorization_pending","message":"The person has not decided."}}`, KindPending},
		{opPoll, 400, nil, `{"error":{"error":"authorization_pending"}}`, KindPending},
		{opPoll, 400, nil, `{"error":{"name":"authorization_pending"}}`, KindPending},
		{opPoll, 400, nil, `{"error":["authorization_pending"]}`, KindPending},
		{opPoll, 400, nil, `{"errors":["authorization_pending"]}`, KindPending},
		{opPoll, 400, nil, `{"errors":[{"code":"authorization_pending","title":"Wait"}]}`, KindPending},
		{opPoll, 400, nil, `{"error":true,"message":"authorization_pending"}`, KindPending},
		{opPoll, 400, nil, `{"success":false,"error":"authorization_pending"}`, KindPending},
		{opPoll, 400, nil, `{"status":"authorization_pending"}`, KindPending},
		{opPoll, 400, problemJSON, `{"type":"about:blank","title":"authorization_pending","status":400}`, KindPending},
		{opPoll, 400, problemJSON, `{"type":"about:blank","title":"Bad Request","detail":"expired_token"}`, KindExpired},
		{opRefresh, 400, nil, `{"errors":[{"code":"invalid_grant"}]}`, KindReauthorize},
		{opPoll, 200, nil, `{"access_token":null,"error":"authorization_pending"}`, KindPending},
		{opPoll, 200, nil, `{"access_token":"","token_type":"","error":"slow_down","interval":"10"}`, KindSlowDown},
		{opPoll, 400, nil, `{"error":"authorization_pending","error_description":null,"interval":null,"error_uri":7}`, KindPending},
		// With other labels, or none.
		{opPoll, 400, jsonAsHTML, `{"error":"authorization_pending"}`, KindPending},
		{opPoll, 400, textType, "\r\n\r\n{\"error\":\"authorization_pending\"}\r\n", KindPending},
		{opPoll, 400, noType, "\xef\xbb\xbf{\"error\":\"authorization_pending\"}", KindPending},
		{opPoll, 400, jsonAsBytes, `{"error":"access_denied"}`, KindDenied},
		{opPoll, 400, jsonAsHTML, `error=authorization_pending&error_description=not+yet`, KindPending},
		{opPoll, 400, noType, `error=expired_token`, KindExpired},
		{opPoll, 400, formType, `error=access_denied&error_description=%C3%A9+%E2%80%A6`, KindDenied},
		{opPoll, 404, nil, `{"error":"expired_token"}`, KindExpired},
		{opPoll, 410, nil, `{"error":"invalid_grant"}`, KindExpired},
		{opPoll, 412, nil, `{"error":"authorization_pending"}`, KindPending},
		{opPoll, 418, nil, `{"error":"access_denied"}`, KindDenied},
		{opPoll, 422, nil, `{"error":"authorization_pending"}`, KindPending},
		// Haste, whatever it is called.
		{opPoll, 400, nil, `{"error":"too_many_requests"}`, KindTemporary},
		{opPoll, 400, nil, `{"error":"rate_limited"}`, KindTemporary},
		{opPoll, 403, nil, `{"error":"quota_exceeded"}`, KindTemporary},
		{opDevice, 400, nil, `{"error":"too_many_requests"}`, KindTemporary},
		{opRefresh, 403, nil, `{"error":"Rate limit exceeded"}`, KindTemporary},
		{opPoll, 429, jsonAsHTML, `Too Many Requests`, KindTemporary},
		{opRefresh, 429, nil, `{"errorCode":"E0000047","errorSummary":"API call exceeded rate limit"}`, KindTemporary},
		{opPoll, 429, nil, `{"error":"authorization_pending"}`, KindTemporary},
		// Somebody on the way, not the server.
		{opRefresh, 407, htmlType, `<html>Proxy authentication required</html>`, KindTemporary},
		{opPoll, 407, htmlType, `<html>`, KindTemporary},
		{opRefresh, 421, nil, ``, KindTemporary},
		{opRefresh, 425, nil, ``, KindTemporary},
		{opRefresh, 511, htmlType, `<html>Sign in to this network</html>`, KindTemporary},
		{opRefresh, 530, htmlType, `error code: 1033`, KindTemporary},
		{opRefresh, 403, htmlType, `<html>Forbidden</html>`, KindTemporary},
		{opRefresh, 403, htmlType, `error code: 1020`, KindTemporary},
		{opRefresh, 404, textType, "\r\n<!DOCTYPE html>\n<title>default backend</title>", KindTemporary},
		{opRefresh, 403, xmlType, `<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>`, KindTemporary},
		{opPoll, 403, htmlType, `<html>Attention required</html>`, KindTemporary},
		{opPoll, 200, htmlType, `<html>Sign in to this network</html>`, KindTemporary},
		{opDevice, 200, htmlType, `<html>?device_code=x&error=y</html>`, KindTemporary},
		// Nothing that anybody could read.
		{opPoll, 400, nil, `[]`, KindTemporary},
		{opPoll, 400, nil, `"authorization_pending`, KindTemporary},
		{opPoll, 400, xmlType, `<error>authorization_pending</error>`, KindTemporary},
		{opPoll, 400, nil, `{"error":null}`, KindTemporary},
		{opPoll, 400, nil, `{"error":""}`, KindTemporary},
		{opPoll, 400, nil, `{"error":false}`, KindTemporary},
		{opPoll, 400, nil, `{"errors":[]}`, KindTemporary},
		{opPoll, 202, nil, `{"status":"pending"}`, KindTemporary},
		{opPoll, 204, noType, ``, KindTemporary},
		{opPoll, 200, nil, `{"access_token":{"value":"at"}}`, KindTemporary},
		{opPoll, 200, nil, `{"access_token":"","refresh_token":null}`, KindTemporary},
		{opRefresh, 200, nil, `{"token_type":"Bearer","expires_in":3600}`, KindTemporary},
		{opDevice, 200, nil, `{"device_code":"d","verification_uri":"https://as.example/d"}`, KindTemporary},
		{opDevice, 200, nil, `{"device_code":null,"user_code":"U","verification_uri":"https://as.example/d"}`, KindTemporary},
		// A refresh token that may be dead: asked about again, not given up at once.
		{opRefresh, 400, nil, `{"error":"invalid_token"}`, KindDoubtful},
		{opRefresh, 401, nil, `{"error":"unauthorized"}`, KindDoubtful},
		{opRefresh, 401, nil, `{"errorCode":"E0000011","errorSummary":"Invalid token provided"}`, KindDoubtful},
		{opRefresh, 400, nil, `{"error":"interaction_required"}`, KindDoubtful},
		{opRefresh, 410, nil, ``, KindDoubtful},
		{opRefresh, 400, htmlType, ``, KindDoubtful},
		{opRefresh, 404, textType, `default backend - 404`, KindDoubtful},
		// A refusal that only a person can mend.
		{opDevice, 400, nil, `{"error":{"code":"invalid_scope"}}`, KindConfiguration},
		{opPoll, 400, nil, `{"error":"something_new"}`, KindConfiguration}, // RFC 8628 §3.5
		{opPoll, 200, nil, `{"access_token":"at","token_type":"mac"}`, KindConfiguration},
		{opPoll, 200, nil, `{"access_token":"at","token_type":"DPoP"}`, KindConfiguration},
		{opDevice, 308, http.Header{"Location": {"https://as.example/device/"}}, ``, KindConfiguration},
	} {
		got, ok := kindOf(t, tc.op, tc.status, tc.header, tc.body)
		if ok || got != tc.want {
			t.Errorf("%s: %d %s: kind %d (ok %v), want %d", tc.op, tc.status, tc.body, got, ok, tc.want)
		}
	}
}

// TestOddTokens has token responses with something odd about them, none of which is
// a reason to throw the token away.
func TestOddTokens(t *testing.T) {
	for name, tc := range map[string]struct {
		header http.Header
		body   string
		access string
		rotate string
		life   time.Duration
		scope  []string
	}{
		"a type with more to it":     {nil, `{"access_token":"at","token_type":"BearerToken","expires_in":"1799","issued_at":"1420262924658","refresh_token_expires_in":"0","refresh_count":"0","scope":""}`, "at", "", 1799 * time.Second, nil},
		"a type with a space":        {nil, `{"access_token":"at","token_type":"bearer "}`, "at", "", 0, nil},
		"no type":                    {nil, `{"access_token":"at","token_type":null}`, "at", "", 0, nil},
		"an exclamation mark":        {nil, `{"access_token":"00Dx0!AQEAQ.w","token_type":"Bearer","instance_url":"https://x.example"}`, "00Dx0!AQEAQ.w", "", 0, nil},
		"a bar and a colon":          {nil, `{"access_token":"1|a:b"}`, "1|a:b", "", 0, nil},
		"the scheme before it":       {nil, `{"access_token":"Bearer at"}`, "at", "", 0, nil},
		"a line break after it":      {nil, `{"access_token":"at\n","refresh_token":"rt"}`, "at", "rt", 0, nil},
		"a number":                   {nil, `{"access_token":1234567890123456789012}`, "1234567890123456789012", "", 0, nil},
		"capitals":                   {nil, `{"ACCESS_TOKEN":"at","EXPIRES_IN":60}`, "at", "", time.Minute, nil},
		"zero seconds":               {nil, `{"access_token":"at","expires_in":0}`, "at", "", 0, nil},
		"minus one":                  {nil, `{"access_token":"at","expires_in":"-1"}`, "at", "", 0, nil},
		"null seconds":               {nil, `{"access_token":"at","expires_in":null}`, "at", "", 0, nil},
		"a lifetime in words":        {nil, `{"access_token":"at","expires_in":"3600 seconds"}`, "at", "", 0, nil},
		"a lifetime in a list":       {nil, `{"access_token":"at","expires_in":[3600]}`, "at", "", 0, nil},
		"a lifetime as a float":      {nil, `{"access_token":"at","expires_in":3600.0}`, "at", "", time.Hour, nil},
		"a lifetime with exponent":   {nil, `{"access_token":"at","expires_in":3.6e3}`, "at", "", time.Hour, nil},
		"a float in a string":        {nil, `{"access_token":"at","expires_in":"3600.0"}`, "at", "", time.Hour, nil},
		"an infinite lifetime":       {nil, `{"access_token":"at","expires_in":Infinity}`, "at", "", 0, nil},
		"no new refresh token":       {nil, `{"access_token":"at","refresh_token":null}`, "at", "", 0, nil},
		"an empty refresh token":     {nil, `{"access_token":"at","refresh_token":""}`, "at", "", 0, nil},
		"a refresh token of false":   {nil, `{"access_token":"at","refresh_token":false}`, "at", "", 0, nil},
		"scope null":                 {nil, `{"access_token":"at","scope":null}`, "at", "", 0, nil},
		"scope an object":            {nil, `{"access_token":"at","scope":{"a":true}}`, "at", "", 0, nil},
		"scopes with commas":         {nil, `{"access_token":"at","scope":"a, b,c"}`, "at", "", 0, []string{"a", "b", "c"}},
		"scopes in a list with null": {nil, `{"access_token":"at","scope":["a",null,"b"]}`, "at", "", 0, []string{"a", "b"}},
		"an error of success":        {nil, `{"access_token":"at","error":"","error_description":""}`, "at", "", 0, nil},
		"an empty error object":      {nil, `{"access_token":"at","error":{}}`, "at", "", 0, nil},
		"an id_token that is none":   {nil, `{"access_token":"at","id_token":"no.such.thing"}`, "at", "", 0, nil},
		"an id_token of a number":    {nil, `{"access_token":"at","id_token":7}`, "at", "", 0, nil},
		"labelled as a page":         {jsonAsHTML, `{"access_token":"at"}`, "at", "", 0, nil},
		"a form labelled as a page":  {jsonAsHTML, `access_token=at&expires_in=60&refresh_token=rt`, "at", "rt", time.Minute, nil},
		"a form without a label":     {noType, "access_token=at&expires=60\n", "at", "", 0, nil},
		"bytes":                      {jsonAsBytes, `{"access_token":"at"}`, "at", "", 0, nil},
		"UTF-8, in other letters":    {http.Header{"Content-Type": {`Application/JSON; Charset="utf8"`}}, `{"access_token":"at"}`, "at", "", 0, nil},
		"Latin-1 in another member":  {nil, "{\"access_token\":\"at\",\"name\":\"Ren\xe9\"}", "at", "", 0, nil},
	} {
		for _, op := range []string{opPoll, opRefresh} {
			var g *grant
			var err error
			if op == opPoll {
				g, err = canned(200, tc.header, tc.body).poll(t.Context(), NewSecret("the-device-code"), Secret{})
			} else {
				g, err = canned(200, tc.header, tc.body).refresh(t.Context(), NewSecret("the-old-one"), Want{})
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if g.access.Reveal() != tc.access || g.refresh.Reveal() != tc.rotate || g.lifetime != tc.life || !reflect.DeepEqual(g.scope, tc.scope) && len(g.scope)+len(tc.scope) > 0 {
				t.Errorf("%s: %q, %q, %v, %q", name, g.access.Reveal(), g.refresh.Reveal(), g.lifetime, g.scope)
			}
		}
	}
}

// A token goes into a header as it is, so what could be read as two of them, or as
// the end of the header, is no token.
func TestTokensThatWouldNotFitIntoAHeader(t *testing.T) {
	for _, token := range []string{`a b`, `a\r\nX-Injected: b`, `a,b`, `a\"b`, `a\u0000`, `ä`, `==`, ` `, `Bearer a b`, `a\\b`} {
		if kind, ok := kindOf(t, opPoll, 200, nil, `{"access_token":"`+token+`"}`); ok || kind != KindTemporary {
			t.Errorf("%q: kind %d, ok %v", token, kind, ok)
		}
	}
}

// TestOddCodes has device responses with something odd about them.
func TestOddCodes(t *testing.T) {
	const (
		head = `{"device_code":"dc","user_code":"U-1","verification_uri":"https://as.example/d"`
		plus = 5 * time.Second
		life = 15 * time.Minute
	)
	for name, tc := range map[string]struct {
		header   http.Header
		body     string
		code     string
		complete string
		interval time.Duration
		life     time.Duration
	}{
		"interval as text":        {nil, head + `,"interval":"7","expires_in":"600"}`, "U-1", "", 7 * time.Second, 10 * time.Minute},
		"interval zero":           {nil, head + `,"interval":0}`, "U-1", "", plus, life},
		"interval negative":       {nil, head + `,"interval":-5}`, "U-1", "", plus, life},
		"interval null":           {nil, head + `,"interval":null,"expires_in":null}`, "U-1", "", plus, life},
		"interval a float":        {nil, head + `,"interval":2.5,"expires_in":599.5}`, "U-1", "", 2500 * time.Millisecond, 599500 * time.Millisecond},
		"interval in words":       {nil, head + `,"interval":"5s"}`, "U-1", "", plus, life},
		"expiry zero":             {nil, head + `,"expires_in":0}`, "U-1", "", plus, life},
		"expiry negative":         {nil, head + `,"expires_in":-1}`, "U-1", "", plus, life},
		"user code of digits":     {nil, `{"device_code":12345,"user_code":20481357,"verification_uri":"https://as.example/d"}`, "20481357", "", plus, life},
		"user code with a space":  {nil, `{"device_code":"dc","user_code":"204 813","verification_uri":"https://as.example/d"}`, "204 813", "", plus, life},
		"complete URL":            {nil, `{"device_code":"dc","user_code":"U-1","verification_url":"https://as.example/d","verification_url_complete":"https://as.example/d?c=1"}`, "U-1", "https://as.example/d?c=1", plus, life},
		"complete URI, camel":     {nil, `{"deviceCode":"dc","userCode":"U-1","verificationUri":"https://as.example/d","verificationUriComplete":"https://as.example/d?c=1"}`, "U-1", "https://as.example/d?c=1", plus, life},
		"complete URI null":       {nil, head + `,"verification_uri_complete":null}`, "U-1", "", plus, life},
		"both names":              {nil, head + `,"verification_url":"https://other.example"}`, "U-1", "", plus, life},
		"an error of false":       {nil, head + `,"error":false,"error_code":0}`, "U-1", "", plus, life},
		"an empty error object":   {nil, head + `,"error":{}}`, "U-1", "", plus, life},
		"labelled as a page":      {jsonAsHTML, head + `}`, "U-1", "", plus, life},
		"labelled as text":        {textType, head + `}`, "U-1", "", plus, life},
		"byte order mark":         {noType, "\xef\xbb\xbf" + head + `}`, "U-1", "", plus, life},
		"a form called a page":    {jsonAsHTML, `device_code=dc&user_code=U-1&verification_uri=https%3A%2F%2Fas.example%2Fd&interval=9`, "U-1", "", 9 * time.Second, life},
		"more than anybody wants": {nil, head + `,"qr":"data:image/png;base64,AAAA","message":"Go there","links":[{"a":{"b":[1,2]}}]}`, "U-1", "", plus, life},
	} {
		before := time.Now().Round(0)
		d, err := canned(200, tc.header, tc.body).authorize(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		left := d.login.ExpiresAt.Sub(before)
		if d.login.UserCode != tc.code || d.login.VerificationURI != "https://as.example/d" || d.login.VerificationURIComplete != tc.complete ||
			d.interval != tc.interval || left < tc.life || left > tc.life+10*time.Second {
			t.Errorf("%s: %+v, interval %v, %v left", name, d.login, d.interval, left)
		}
	}
}

// An answer may be compressed; net/http unpacks what it has asked for.
func TestACompressedAnswer(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte(`{"access_token":"at","expires_in":60}`))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	as := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(packed.Bytes())
	}))
	defer as.Close()
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	c := &client{Config: Config{Endpoints: Endpoints{Token: as.URL}, ClientID: "c", HTTP: transport}.withDefaults()}
	g, err := c.refresh(t.Context(), NewSecret("the-old-one"), Want{})
	if err != nil || g.access.Reveal() != "at" || g.lifetime != time.Minute {
		t.Errorf("%+v, %v", g, err)
	}
}
