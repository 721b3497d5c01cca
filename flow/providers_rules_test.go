package flow

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestRulesForEveryServer goes through what serves every server, in answers as
// servers send them. What takes time to show is tested elsewhere:
//
//	the local clock ends a login    TestLocalClockEndsALogin
//	slow_down counts for good       TestSlowDownCountsForGoodEvenAfterARestart, TestSlowDownTakesTheLongestOfAllThatIsSaid
//	one refresh at a time           TestTwoRefreshesAtOnceAreOne, TestOneRefreshForEachLifetime (over instances)
//	doubtful refusals               TestDoubtfulRefusalsEndALoginOnlyWithItsToken
//	never two polls, none after 200 every test: flowtest objects to both
//	one-shot answers                TestFinalErrorsEndTheLogin
//	revocation is best effort       TestRevocationIsBestEffort
func TestRulesForEveryServer(t *testing.T) {
	const good Kind = -1
	for _, tc := range []struct {
		rule   string
		op     string
		status int
		header http.Header
		body   string
		want   Kind
	}{
		{"the name, then the status", opPoll, 200, nil, `{"error":"authorization_pending"}`, KindPending},
		{"the name, then the status", opPoll, 403, nil, `{"error":"access_denied"}`, KindDenied},
		{"the name, then the status", opPoll, 428, nil, `{"error":"authorization_pending","error_description":"Precondition"}`, KindPending},
		{"the name, then the status", opPoll, 401, nil, `{"error_code":"authorization_pending"}`, KindPending},
		{"the name, then the status", opPoll, 400, nil, `{"status":400,"message":"authorization_pending"}`, KindPending},
		{"the name, then the status", opPoll, 200, nil, `{"message":"authorization_pending"}`, KindTemporary}, // no error at 200
		{"the name, then the status", opPoll, 400, nil, `{"error":{"message":"authorization_pending"}}`, KindPending},
		{"a name, not the status once more", opPoll, 400, nil, `{"error":"Bad Request","statusCode":400,"message":"authorization_pending"}`, KindPending},
		{"a name, not the status once more", opPoll, 400, nil, `{"error":{"code":400,"status":"expired_token","message":"The code has run out."}}`, KindExpired},
		{"a name, not the status once more", opPoll, 400, nil, `{"code":"authorization_pending","message":"Not yet."}`, KindPending},
		{"a name, not the status once more", opPoll, 400, nil, `{"error":"invalid_request","message":"authorization_pending"}`, KindConfiguration},
		{"429 outranks the name", opRefresh, 429, nil, `{"error":"invalid_grant"}`, KindTemporary},
		{"429 outranks the name", opRefresh, 429, nil, `{"error":"invalid_client"}`, KindTemporary},
		{"429 outranks the name", opPoll, 429, nil, `{"error":"access_denied"}`, KindTemporary},
		{"429 outranks the name", opPoll, 429, nil, `{"error":"slow_down"}`, KindSlowDown},
		{"429 outranks the name", opPoll, 429, nil, ``, KindTemporary},
		{"aliases", opPoll, 400, nil, `{"error":"authorization_declined"}`, KindDenied},
		{"aliases", opPoll, 400, nil, `{"error":"token_expired"}`, KindExpired},
		{"aliases", opPoll, 400, nil, `{"error":"Expired"}`, KindExpired},
		{"aliases", opPoll, 400, nil, `{"error":"invalid_code_pair"}`, KindExpired},
		{"aliases", opPoll, 400, nil, `{"error":"bad_verification_code"}`, KindExpired},
		{"aliases", opPoll, 200, nil, `{"error":"incorrect_device_code"}`, KindExpired},
		{"aliases", opPoll, 400, nil, `{"status":400,"message":"invalid device code"}`, KindExpired},
		{"aliases", opPoll, 400, nil, `{"error":"invalid_grant"}`, KindExpired},
		{"aliases", opPoll, 400, nil, `{"error":"authorization-pending"}`, KindPending},
		{"vendors that count", opPoll, 400, nil, `{"error":{"message":"Wait","code":31,"error_subcode":1349174}}`, KindPending},
		{"vendors that count", opPoll, 400, nil, `{"error":{"message":"Too often","code":17,"error_subcode":1349172}}`, KindSlowDown},
		{"vendors that count", opPoll, 400, nil, `{"error":1101,"sub_error":20414}`, KindDenied},
		{"vendors that count", opPoll, 400, nil, `{"error":1101,"sub_error":20404}`, KindExpired},
		{"temporary", opPoll, 502, htmlType, `<html>Bad gateway</html>`, KindTemporary},
		{"temporary", opPoll, 400, nil, ``, KindTemporary},
		{"temporary", opPoll, 400, nil, `{"hint":"later"}`, KindTemporary},
		{"temporary", opPoll, 200, htmlType, `<html>Maintenance</html>`, KindTemporary},
		{"temporary", opRefresh, 500, nil, `{"error":"invalid_grant"}`, KindTemporary},
		{"temporary", opRefresh, 408, nil, `{"error":"invalid_request"}`, KindTemporary},
		{"temporary", opDevice, 503, nil, `{"error":"invalid_client"}`, KindTemporary},
		{"a dead refresh token by other names", opRefresh, 400, nil, `{"error":"invalid_request"}`, KindDoubtful},
		{"a dead refresh token by other names", opRefresh, 400, nil, `{"error":"Unknown or invalid refresh token."}`, KindDoubtful},
		{"a dead refresh token by other names", opRefresh, 401, nil, `{"status":401,"message":"Invalid refresh token"}`, KindDoubtful},
		{"a dead refresh token by other names", opRefresh, 400, nil, ``, KindDoubtful},
		{"a dead refresh token by other names", opRefresh, 200, nil, `{"error":"bad_refresh_token"}`, KindReauthorize},
		{"a dead refresh token by other names", opRefresh, 400, nil, `{"error":"invalid_grant"}`, KindReauthorize},
		{"an answer is not lost over details", opDevice, 201, nil, `{"device_code":"d","user_code":"U","verification_uri":"https://as.example/d"}`, good},
		{"an answer is not lost over details", opDevice, 200, nil, `{"error":0,"device_code":"d","user_code":"U","verification_url":"https://as.example/d"}`, good},
		{"an answer is not lost over details", opPoll, 200, nil, `{"error":"none","access_token":"at"}`, good},
	} {
		kind, ok := kindOf(t, tc.op, tc.status, tc.header, tc.body)
		if ok {
			kind = good
		}
		if kind != tc.want {
			t.Errorf("%s: %s, %d %s: kind %d, want %d", tc.rule, tc.op, tc.status, tc.body, kind, tc.want)
		}
	}
}

// jwtWith is an access token with that payload and no signature to speak of.
func jwtWith(payload string) string {
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func TestNumbersAndNamesOfTokens(t *testing.T) {
	sent := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	dated := http.Header{"Content-Type": {"application/json"}, "Date": {sent.Format(http.TimeFormat)}}
	for _, tc := range []struct {
		name    string
		header  http.Header
		body    string
		life    time.Duration
		refresh time.Duration
		scope   []string
	}{
		{"integers", nil, `{"access_token":"at","expires_in":3}`, 3 * time.Second, 0, nil},
		{"floats", nil, `{"access_token":"at","expires_in":3.5}`, 3500 * time.Millisecond, 0, nil},
		{"strings", nil, `{"access_token":"at","expires_in":" 900 "}`, 15 * time.Minute, 0, nil},
		{"nonsense", nil, `{"access_token":"at","expires_in":"soon","scope":7}`, 0, 0, nil},
		{"negative", nil, `{"access_token":"at","expires_in":-1}`, 0, 0, nil},
		{"absurd", nil, `{"access_token":"at","expires_in":1e18}`, maxTokenLifetime, 0, nil},
		{"another name", nil, `{"access_token":"at","expire_in":60}`, time.Minute, 0, nil},
		{"camel case", nil, `{"accessToken":"at","expiresIn":60,"refreshExpiresIn":30,"tokenType":"bearer"}`, time.Minute, 30 * time.Second, nil},
		{"no type", nil, `{"access_token":"at","scope":"a b"}`, 0, 0, []string{"a", "b"}},
		{"comma list", nil, `{"access_token":"at","token_type":"BEARER","scope":"repo,gist"}`, 0, 0, []string{"repo", "gist"}},
		{"array", nil, `{"access_token":"at","scope":["a","b"]}`, 0, 0, []string{"a", "b"}},
		{"form", formType, `access_token=at&scope=repo%2Cgist&token_type=bearer&expires_in=28800&refresh_token_expires_in=15897600`, 8 * time.Hour, 15897600 * time.Second, []string{"repo", "gist"}},
		{"refresh token with an end", nil, `{"access_token":"at","expires_in":300,"refresh_expires_in":1800}`, 5 * time.Minute, 30 * time.Minute, nil},
		{"refresh token without", nil, `{"access_token":"at","expires_in":300,"refresh_expires_in":0}`, 5 * time.Minute, 0, nil},
		{"JWT that ends earlier", dated, fmt.Sprintf(`{"access_token":%q,"expires_in":3600}`, jwtWith(fmt.Sprintf(`{"exp":%d}`, sent.Unix()+600))), 10 * time.Minute, 0, nil},
		{"JWT that ends later", dated, fmt.Sprintf(`{"access_token":%q,"expires_in":60}`, jwtWith(fmt.Sprintf(`{"exp":%d}`, sent.Unix()+600))), time.Minute, 0, nil},
		{"JWT alone", dated, fmt.Sprintf(`{"access_token":%q}`, jwtWith(fmt.Sprintf(`{"exp":%d.9}`, sent.Unix()+600))), 10 * time.Minute, 0, nil},
		{"JWT of the past", dated, fmt.Sprintf(`{"access_token":%q,"expires_in":60}`, jwtWith(fmt.Sprintf(`{"exp":%d}`, sent.Unix()-600))), time.Minute, 0, nil},
		{"three parts that are no JWT", dated, `{"access_token":"a.b.c","expires_in":60}`, time.Minute, 0, nil},
	} {
		g, err := canned(200, tc.header, tc.body).poll(t.Context(), NewSecret("the-device-code"), Secret{})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if g.lifetime != tc.life || g.refreshLifetime != tc.refresh || !reflect.DeepEqual(g.scope, tc.scope) && len(g.scope)+len(tc.scope) > 0 {
			t.Errorf("%s: lifetime %v, of the refresh token %v, scope %q", tc.name, g.lifetime, g.refreshLifetime, g.scope)
		}
	}
}

// The user code is shown as it came, and nothing is added to what the server names.
func TestCodesAndAddressesAreShownAsTheyCame(t *testing.T) {
	d, err := canned(200, nil, `{"device_code":"d","user_code":"aB-3 dé","verification_url":"https://as.example/d?x=%41"}`).authorize(t.Context())
	if err != nil || d.login.UserCode != "aB-3 dé" || d.login.VerificationURI != "https://as.example/d?x=%41" || d.login.VerificationURIComplete != "" {
		t.Errorf("%+v, %v", d, err)
	}
}

// access_denied can be a policy: nobody is accused of anything.
func TestARefusalAccusesNobody(t *testing.T) {
	_, err := canned(403, nil, `{"error":"access_denied","error_description":"Policy of the tenant; code=the-device-code"}`).poll(t.Context(), NewSecret("the-device-code"), Secret{})
	text := describe(asError(opPoll, err))
	if !strings.HasPrefix(text, "the login was not approved: access_denied (HTTP 403): Policy of the tenant") ||
		strings.Contains(text, "the-device-code") || strings.Contains(text, "you ") {
		t.Error(text)
	}
}
