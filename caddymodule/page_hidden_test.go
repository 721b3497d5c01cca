package caddymodule

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// hidden steer a terminal, turn the direction of text, or are not to be seen.
var hidden = []string{"\u0085", "\u009b", "\u202e", "\u2066", "\u200b", "\u00ad", "\u2028", "\ufeff", "\ufe0f", "\U000e0041"}

// An address is shown in many places. None of them may show what a hostile server has hidden in it, wherever in it that is.
func TestAnAddressHidesNothingFromAReader(t *testing.T) {
	for _, c := range hidden {
		for _, form := range []string{
			"https://login.example.com/de%svice", "https://login.example.com/device?a=%sb", "https://login.example.com/device?%s",
			"https://login.example.com/device#%sb", "https://login.example.com/device%%3f?a=1&%s=2#x",
		} {
			uri := fmt.Sprintf(form, c)
			st := pending("CODE", uri, uri+"&user_code=CODE")
			var qr, log bytes.Buffer
			e := flow.Event{Kind: flow.EventLoginPending, Status: st}
			qrObserver(&terminal{w: &qr})(e)
			logObserver(zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&log), zapcore.DebugLevel)))(e)
			said := map[string]string{
				"the plain page": newView(st, time.Now()).plain(),
				"the terminal":   described(st, time.Now()) + summary(st, time.Now()),
				"log_qr":         qr.String(),
				"the log":        log.String(),
				"the event":      fmt.Sprint(eventData(e)),
			}
			for _, accept := range []string{typeProblem, typePlain, typeHTML} {
				said["the 503 as "+accept] = unavailable(st, "", accept).Body.String()
			}
			said["the page"] = do(newFake(st).page(), "GET", testPath, "Accept", typeHTML, refreshHeader, "1").Body.String()
			for place, text := range said {
				if !strings.Contains(text, "login.example.com") || !strings.Contains(text, "CODE") {
					t.Errorf("%s says nothing of %q: %s", place, uri, text)
				}
				if strings.Contains(text, c) {
					t.Errorf("%s shows %q of %q", place, c, uri)
				}
			}
		}
	}
}

func TestAnAddressInOtherLettersCanBeOpened(t *testing.T) {
	for raw, want := range map[string]string{
		"https://login.example.com/gerät?für=Zoë&%C3%BC=1#ü": "https://login.example.com/ger%C3%A4t?f%C3%BCr=Zo%C3%AB&%C3%BC=1#%C3%BC",
		"https://login.example.com/?a=b+c%20d;e&&f":          "https://login.example.com/?a=b+c%20d;e&&f",
		"https://login.example.com/?":                        "https://login.example.com/?",
	} {
		if got := newLink(raw).Href; got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
	if l := newLink("https://login.example.com/?" + strings.Repeat("ü", maxLink/4)); l.Href != "" {
		t.Errorf("of %d bytes when it is spelt out", len(l.Href))
	}
}

// A link that is cut leads nowhere.
func TestTheLogHasTheWholeAddress(t *testing.T) {
	uri := "https://login.example.com/device?ticket=" + strings.Repeat("x", 1500)
	for _, f := range eventFields(flow.Event{Kind: flow.EventLoginPending, Status: pending("CODE", uri, "")}) {
		if f.Key == "verification_uri" && f.String != uri {
			t.Errorf("it has %d bytes of %d", len(f.String), len(uri))
		}
	}
}
