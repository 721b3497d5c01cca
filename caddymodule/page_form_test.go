package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// post sends the form to http://proxy.lan:8080/.device-flow/login.
func post(p *page, form url.Values, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "http://proxy.lan:8080"+testPath+"/login", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w
}

func TestPageLoginGoesBackToThePage(t *testing.T) {
	f := newFake(sampleStatuses(time.Now())["login_required"])
	p := f.page()
	w := post(p, formOf(t, p), "Origin", "http://proxy.lan:8080", "Sec-Fetch-Site", "same-origin", "Accept", "text/html")
	base, _ := url.Parse("http://proxy.lan:8080" + testPath + "/login")
	to, err := base.Parse(w.Header().Get("Location"))
	if w.Code != http.StatusSeeOther || err != nil || to.String() != "http://proxy.lan:8080"+testPath {
		t.Errorf("%d to %v", w.Code, to)
	}
	if _, logins := f.counts(); logins != 1 {
		t.Errorf("%d logins", logins)
	}
}

func TestPageLoginTakesNoOtherSitesWord(t *testing.T) {
	for _, c := range []struct {
		what   string
		header []string
		want   int
	}{
		{"no browser", nil, 303},
		{"same origin", []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://proxy.lan:8080"}, 303},
		{"same origin, plain HTTP on a LAN", []string{"Origin", "http://proxy.lan:8080"}, 303},
		{"same origin, TLS ended before us", []string{"Origin", "https://PROXY.lan:8080"}, 303},
		{"typed by the user", []string{"Sec-Fetch-Site", "none"}, 303},
		{"null, vouched for", []string{"Sec-Fetch-Site", "same-origin", "Origin", "null"}, 303},
		{"null", []string{"Origin", "null"}, 403},
		{"null, typed", []string{"Sec-Fetch-Site", "none", "Origin", "null"}, 403},
		{"null, cross-site", []string{"Sec-Fetch-Site", "cross-site", "Origin", "null"}, 403},
		{"cross-site", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"same site", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"an unknown word", []string{"Sec-Fetch-Site", "friendly"}, 403},
		{"empty", []string{"Sec-Fetch-Site", ""}, 403},
		{"two words", []string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Site", "cross-site"}, 403},
		{"another origin", []string{"Origin", "http://evil.example"}, 403},
		{"another port", []string{"Origin", "http://proxy.lan:8081"}, 403},
		{"without the port", []string{"Origin", "http://proxy.lan"}, 403},
		{"another origin, vouched for", []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://evil.example"}, 403},
		{"two origins", []string{"Origin", "http://proxy.lan:8080", "Origin", "http://evil.example"}, 403},
		{"an empty origin", []string{"Origin", ""}, 403},
		{"no origin at all", []string{"Origin", "proxy.lan:8080"}, 403},
		{"a user name", []string{"Origin", "http://proxy.lan:8080@evil.example"}, 403},
	} {
		f := newFake(sampleStatuses(time.Now())["login_required"])
		p := f.page()
		w := post(p, formOf(t, p), c.header...)
		_, logins := f.counts()
		if w.Code != c.want || (logins == 1) != (c.want == 303) {
			t.Errorf("%s: %d, %d logins", c.what, w.Code, logins)
		}
		if w.Code == 403 && !strings.HasPrefix(w.Header().Get("Content-Type"), typeProblem) {
			t.Errorf("%s: %s", c.what, w.Header().Get("Content-Type"))
		}
	}
}

func TestPageLoginNeedsAFormOfOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(formWindow / 2) // of the bubble: into the middle of a window
		for _, c := range []struct {
			what   string
			change func(p *page, form url.Values)
			want   int
		}{
			{"fresh", func(*page, url.Values) {}, 303},
			{"half a window old", func(*page, url.Values) { time.Sleep(formWindow / 2) }, 303},
			{"three windows old", func(*page, url.Values) { time.Sleep(3 * formWindow) }, 403},
			{"none", func(_ *page, form url.Values) { form.Del("token") }, 403},
			{"empty", func(_ *page, form url.Values) { form.Set("token", "") }, 403},
			{"altered", func(_ *page, form url.Values) { form.Set("token", "A"+form.Get("token")[1:]+"A") }, 403},
			{"of another process", func(p *page, _ url.Values) { p.key = []byte("another") }, 403},
			{"of another session", func(p *page, form url.Values) { form.Set("token", p.formToken("another", time.Now())) }, 403},
			{"too large", func(_ *page, form url.Values) { form.Set("more", strings.Repeat("a", 10_000)) }, 403},
		} {
			f := newFake(sampleStatuses(time.Now())["login_required"])
			p := f.page()
			form := formOf(t, p)
			c.change(p, form)
			w := post(p, form)
			if _, logins := f.counts(); w.Code != c.want || (logins == 1) != (c.want == 303) {
				t.Errorf("%s: %d, %d logins", c.what, w.Code, logins)
			}
		}
	})
}

func TestPageLoginReadsTheBodyOnly(t *testing.T) {
	f := newFake(sampleStatuses(time.Now())["login_required"])
	p := f.page()
	form := formOf(t, p)
	if w := do(p, "POST", testPath+"/login?"+form.Encode()); w.Code != 403 {
		t.Errorf("token in the address: %d", w.Code)
	}
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	_ = m.WriteField("token", form.Get("token"))
	_ = m.Close()
	r := httptest.NewRequest("POST", testPath+"/login", &b)
	r.Header.Set("Content-Type", m.FormDataContentType())
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	if _, logins := f.counts(); w.Code != 403 || logins != 0 {
		t.Errorf("multipart: %d, %d logins", w.Code, logins)
	}
}

func TestPageLoginOverAWorkingOneHasToBeConfirmed(t *testing.T) {
	samples := sampleStatuses(time.Now())
	for name, asks := range map[string]bool{
		"authorized": true, "degraded-storage": true, "misconfigured-serving": true,
		"login_required-denied": false, "unavailable": false, "misconfigured": false,
	} {
		f := newFake(samples[name])
		p := f.page()
		form := formOf(t, p)
		form.Del("confirm")
		want := 303
		if asks {
			want = 409
		}
		if w := post(p, form); w.Code != want {
			t.Errorf("%s: %d, want %d", name, w.Code, want)
		}
		form.Set("confirm", "1")
		if w := post(p, form); w.Code != 303 {
			t.Errorf("%s, confirmed: %d", name, w.Code)
		}
	}
	// Where the page itself says that a login is the next step, one press is enough.
	p := newFake(samples["degraded-revoked"]).page()
	if w := post(p, formOf(t, p)); w.Code != 303 {
		t.Errorf("degraded-revoked: %d", w.Code)
	}
}

func TestPageLoginThatFailsSaysWhy(t *testing.T) {
	f := newFake(sampleStatuses(time.Now())["login_required"])
	f.onLogin = func(context.Context) error { return errors.New("too soon: wait <20> s\x1b[2J") }
	p := f.page()
	w := post(p, formOf(t, p), "Accept", "text/html")
	if w.Code != 503 || !strings.Contains(w.Body.String(), "too soon: wait &lt;20&gt; s[2J") || !strings.Contains(w.Body.String(), `action="./login"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = post(p, formOf(t, p))
	if w.Code != 503 || !strings.HasPrefix(w.Header().Get("Content-Type"), typeProblem) || !strings.Contains(w.Body.String(), "too soon") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPageLoginIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(flow.Status{State: flow.StateLoginRequired})
		f.onLogin = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		p := f.page()
		start := time.Now()
		if w := post(p, formOf(t, p)); w.Code != 503 || time.Since(start) != loginWait {
			t.Errorf("%d after %s", w.Code, time.Since(start))
		}
	})
}
