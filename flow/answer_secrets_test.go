package flow

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// What was sent in confidence does not come back in an error, whatever the server
// has done to it.
func TestErrorsDoNotRepeatWhatWasSent(t *testing.T) {
	const secret = `s3/cret+with "odd"&<things>\é`
	for name, echo := range map[string]string{
		"as it is":             secret,
		"in a query":           url.QueryEscape(secret),
		"in a path":            url.PathEscape(secret),
		"in lower case":        strings.NewReplacer("%2F", "%2f", "%2B", "%2b", "%5C", "%5c", "%C3%A9", "%c3%a9", "%3C", "%3c", "%3E", "%3e").Replace(url.QueryEscape(secret)),
		"in HTML":              `s3/cret+with &#34;odd&#34;&amp;&lt;things&gt;\é`,
		"quoted":               `s3/cret+with \"odd\"&<things>\\é`,
		"with a zero width":    "s3/\u200bcret+with \"odd\"&<things>\\é",
		"with a control":       "s3/cret+w\x00ith \"odd\"&<thi\x1bngs>\\é",
		"escaped, zero width":  strings.Replace(url.QueryEscape(secret), "cret", "cr\u00adet", 1),
		"with a wider space":   strings.Replace(secret, " ", "\u2003 ", 1),
		"where the text ends":  strings.Repeat("x", 190) + strings.Replace(secret, "cret", "cr\u200bet", 1),
		"where a code may end": strings.Repeat("x", 55) + secret,
	} {
		for _, member := range []string{"error", "error_description"} {
			_, err := canned(400, nil, object(t, map[string]any{"error": "odd"}, member, "sent: "+echo)).refresh(t.Context(), NewSecret(secret), Want{})
			if text := err.Error() + describe(asError("", err)); strings.Contains(text, "s3/c") || strings.Contains(text, "s3%2") || strings.Contains(text, "things") {
				t.Errorf("%s, in %s: %s", name, member, text)
			}
		}
	}
	_, err := canned(200, nil, object(t, map[string]any{"access_token": "at", "refresh_token": "the-new-one"}, "token_type", "the-new-one")).refresh(t.Context(), NewSecret(secret), Want{})
	if err == nil || strings.Contains(err.Error(), "the-new-one") {
		t.Errorf("%v", err)
	}
}

func TestErrorsDoNotRepeatTheCredentialsOfAHeader(t *testing.T) {
	echo := func(r *http.Request) (*http.Response, error) {
		_, credential, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		body, err := json.Marshal(map[string]string{"error": "invalid_token", "error_description": "not good: " + credential})
		return &http.Response{StatusCode: 401, Header: make(http.Header), Body: io.NopCloser(bytes.NewReader(body)), Request: r}, err
	}
	c := canned(200, nil, "")
	c.HTTP, c.Endpoints.UserInfo = answers(echo), "https://as.example/me"
	if _, _, err := c.userInfo(t.Context(), NewSecret("the-access-token")); err == nil || strings.Contains(err.Error(), "the-access-token") || !strings.Contains(err.Error(), "not good") {
		t.Errorf("userinfo: %v", err)
	}
	c.ClientAuth, c.Secret = ClientAuthBasic, func(context.Context) (Secret, error) { return NewSecret("s3cret"), nil }
	_, err := c.refresh(t.Context(), NewSecret("rt"), Want{})
	if err == nil || strings.Contains(err.Error(), base64.StdEncoding.EncodeToString([]byte("c:s3cret"))) || !strings.Contains(err.Error(), "not good") {
		t.Errorf("refresh: %v", err)
	}
}
