package caddymodule

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// A Caddy that has moved the field costs a twentieth more for each request, and nobody would notice.
func TestTheProxysLoggerIsWhereWeLookForIt(t *testing.T) {
	if lazyLog(new(reverseproxy.Handler)) {
		t.Error("a proxy that has no logger yet was given one")
	}
	h := newHot(t)
	var found bool
	handlersOf(h.ours.Routes, func(m caddyhttp.MiddlewareHandler) {
		if p, ok := m.(*reverseproxy.Handler); ok {
			found = lazyLog(p)
		}
	})
	if !found {
		t.Error("reverse_proxy has no field named logger of type *zap.Logger any more: see whether it uses WithLazy by now, and take lazyLog out if so")
	}
}

func TestARequestIsEncodedForTheLogOnlyWhenALineIsWritten(t *testing.T) {
	var out strings.Builder
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}), zapcore.AddSync(&out), zapcore.InfoLevel)
	encoded := 0
	field := zap.Object("request", zapcore.ObjectMarshalerFunc(func(enc zapcore.ObjectEncoder) error {
		encoded++
		enc.AddString("uri", "/things")
		return nil
	}))
	l := zap.New(lazyCore{core}).Named("proxy").With(field)
	if l.Check(zapcore.DebugLevel, "nobody sees this") != nil || encoded != 0 {
		t.Errorf("the request was encoded %d times for a line that is not written", encoded)
	}
	l.Warn("one", zap.Error(errors.New("broken")))
	l.With(zap.Int("n", 2)).Warn("two")
	want := `{"msg":"one","request":{"uri":"/things"},"error":"broken"}` + "\n" + `{"msg":"two","request":{"uri":"/things"},"n":2}` + "\n"
	if out.String() != want || encoded != 1 {
		t.Errorf("encoded %d times, and written was\n%swant\n%s", encoded, out.String(), want)
	}
}

// What the log says of a proxy of ours is what it says of any, at each level.
func TestTheProxysLogIsAsItWas(t *testing.T) {
	for _, level := range []string{"DEBUG", "INFO"} {
		x := newRig(t, flowtest.Config{})
		name := t.Name() + level
		config := x.config(name, "", "ours", "device_flow API {\n LOGIN\n}", "stock", "reverse_proxy API")
		x.load(strings.Replace(config, `"DEBUG"`, `"`+level+`"`, 1))
		x.login("default")
		lines := make(map[string]map[string][]string) // by site and message: the members of the line
		for _, site := range []string{"ours", "stock"} {
			x.as.Script(flowtest.API, flowtest.Response{Header: http.Header{"Content-Length": {"10"}}, Body: "hello"}) // and no more
			resp, err := x.client.Get("http://" + site + "/broken?by=" + site)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Fatal("the answer is whole")
			}
			resp.Body.Close()
			lines[site] = make(map[string][]string)
			for _, line := range logged(name, "http.handlers.reverse_proxy", "/broken?by="+site) {
				var members map[string]any
				if err := json.Unmarshal([]byte(line), &members); err != nil {
					t.Fatal(err)
				}
				request, _ := members["request"].(map[string]any)
				headers, _ := request["headers"].(map[string]any)
				if headers["Via"] == nil {
					t.Errorf("%s, %s: a line has no header of the request: %s", level, site, line)
				}
				lines[site][members["msg"].(string)] = slices.Concat(slices.Sorted(maps.Keys(members)), slices.Sorted(maps.Keys(request)))
			}
		}
		if len(lines["ours"]["aborting with incomplete response"]) == 0 || (level == "DEBUG") != (len(lines["ours"]["upstream roundtrip"]) > 0) {
			t.Errorf("%s: a line is missing, or one too many: %v", level, lines["ours"])
		}
		if !maps.EqualFunc(lines["ours"], lines["stock"], slices.Equal) {
			t.Errorf("%s: ours\n%v\nstock\n%v", level, lines["ours"], lines["stock"])
		}
	}
}
