package caddymodule

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestAnAnswerIsPrivateUnlessTheAPISaysWhatSharedCachesMayDo(t *testing.T) {
	for _, c := range []struct {
		status int
		lines  []string
		want   []string
	}{
		{200, nil, []string{"private"}},
		{200, []string{""}, []string{"private"}},
		{200, []string{"max-age=60"}, []string{"max-age=60, private"}},
		{200, []string{"max-age=60", "no-transform,"}, []string{"max-age=60, no-transform, private"}},
		{200, []string{"no-cache"}, []string{"no-cache, private"}},
		{200, []string{"proxy-revalidate, immutable"}, []string{"proxy-revalidate, immutable, private"}},
		{200, []string{`private="Set-Cookie", max-age=60`}, []string{`private="Set-Cookie", max-age=60, private`}},
		{200, []string{`no-cache="a, public, \", no-store"`}, []string{`no-cache="a, public, \", no-store", private`}},
		{200, []string{"publicly"}, []string{"publicly, private"}},
		{200, []string{"max-age=60, public"}, []string{"max-age=60, public"}},
		{200, []string{"PUBLIC"}, []string{"PUBLIC"}},
		{200, []string{"s-maxage=60"}, []string{"s-maxage=60"}},
		{200, []string{"max-age=60", "Must-Revalidate"}, []string{"max-age=60", "Must-Revalidate"}},
		{200, []string{"private"}, []string{"private"}},
		{200, []string{`x="a,b" ,	no-store`}, []string{`x="a,b" ,	no-store`}},
		{204, nil, []string{"private"}},
		{301, nil, []string{"private"}},
		{403, nil, []string{"private"}},
		{404, nil, []string{"private"}},
		{500, []string{"max-age=5"}, []string{"max-age=5, private"}},
		{304, nil, nil},
		{304, []string{"max-age=60"}, []string{"max-age=60, private"}},
		{304, []string{"public"}, []string{"public"}},
		{401, nil, nil},
		{101, nil, nil},
	} {
		h := http.Header{}
		if c.lines != nil {
			h["Cache-Control"] = slices.Clone(c.lines)
		}
		keepPrivate(c.status, h)
		if got := h["Cache-Control"]; !slices.Equal(got, c.want) {
			t.Errorf("%d %q becomes %q, want %q", c.status, c.lines, got, c.want)
		}
	}
}

func TestWhatOtherHandlersAnswerToAnAuthenticatedRequestIsPrivate(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), global,
		"answer", "device_flow\nrespond hello",
		"decided", "device_flow\nheader Cache-Control public\nrespond hello",
		"proxy", "device_flow\nreverse_proxy API",
		"stream", "device_flow\nreverse_proxy API {\n flush_interval -1\n}",
		"early", "device_flow\nreverse_proxy API"))
	x.login("default")
	for site, want := range map[string]string{"answer": "private", "decided": "public", "proxy": "private", "stream": "private", "early": "private"} {
		switch site {
		case "proxy", "stream":
			x.as.Script(flowtest.API, flowtest.Response{Body: "hello"})
		case "early":
			x.as.Script(flowtest.API, flowtest.Response{Func: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Link", "</style.css>; rel=preload")
				w.WriteHeader(http.StatusEarlyHints)
				w.WriteHeader(http.StatusAccepted)
			}})
		}
		if got := x.get("http://" + site + "/"); got.status/100 != 2 || strings.Join(got.header["Cache-Control"], "|") != want {
			t.Errorf("%s: %d with %q, want %q", site, got.status, got.header["Cache-Control"], want)
		}
	}
}

func TestAHandlerThatFlushesFirstAnswersPrivately(t *testing.T) {
	rec := httptest.NewRecorder()
	w := newHeadWriter(rec, keepPrivate)
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Fatal(err)
	}
	if got := rec.Result().Header.Get("Cache-Control"); got != "private" {
		t.Errorf("Cache-Control is %q", got)
	}
}

func TestCredentialsInTheLogAreWarnedOfWhereAProxyWouldWriteThem(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	const loud = global + "\n servers {\n  log_credentials\n }\n"
	const warning = "writes the token into the debug log"
	x.load(x.config(t.Name()+"Short", loud, "a", "device_flow API"))
	x.load(x.config(t.Name()+"Quiet", global, "b", "device_flow\nrespond hello"))
	for _, log := range []string{"Short", "Quiet"} {
		if lines := logged(t.Name()+log, warning); len(lines) != 0 {
			t.Errorf("%s: %q", log, lines)
		}
	}
	x.load(x.config(t.Name()+"Loud", loud, "c", "device_flow\nreverse_proxy API"))
	if lines := logged(t.Name()+"Loud", warning); len(lines) != 1 || !strings.Contains(lines[0], "transport device_flow default") {
		t.Errorf("got %q", lines)
	}
}

func TestAnAnswerOfTheAPIComesBackPrivate(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", proxy))
	x.login("default")
	for control, want := range map[string]string{"": "private", "max-age=60": "max-age=60, private", "public, max-age=60": "public, max-age=60"} {
		h := http.Header{"Etag": {`"1"`}}
		if control != "" {
			h.Set("Cache-Control", control)
		}
		x.as.Script(flowtest.API, flowtest.Response{Header: h, Body: "answer"})
		if got := x.get("http://a/"); got.status != 200 || strings.Join(got.header["Cache-Control"], "|") != want {
			t.Errorf("%d with %q, want %q", got.status, got.header["Cache-Control"], want)
		}
	}
}
