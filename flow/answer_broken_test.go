package flow

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// broken is an answer whose connection ends badly.
type broken struct{ io.Reader }

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (broken) Close() error { return nil }

func TestATokenThatHasArrivedIsKeptHoweverTheConnectionEnds(t *testing.T) {
	const whole = "\xef\xbb\xbf \n" + `{"access_token":"at","expires_in":NaN,"refresh_token":"rt"}`
	for name, tc := range map[string]struct {
		status int
		body   string
		want   bool
	}{
		"whole":              {200, whole, true},
		"and more":           {200, whole + " \r\n", true},
		"cut off":            {200, whole[:len(whole)-1], false},
		"a form":             {200, "access_token=at&refresh_token=r", false}, // there may be more of it
		"nothing":            {200, "", false},
		"a list":             {200, `[]`, false},
		"an error":           {400, `{"error":"invalid_grant"}`, false}, // asked again, it says so again
		"a gateway's answer": {502, whole, false},
	} {
		c := canned(tc.status, nil, "")
		c.HTTP = answers(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: tc.status, Header: make(http.Header), Body: broken{strings.NewReader(tc.body)}, Request: r}, nil
		})
		g, err := c.refresh(t.Context(), NewSecret("old"), Want{})
		if tc.want != (err == nil) || tc.want && (g.access.Reveal() != "at" || g.refresh.Reveal() != "rt") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && asError("", err).Kind != KindTemporary {
			t.Errorf("%s: kind %d", name, asError("", err).Kind)
		}
	}
}
