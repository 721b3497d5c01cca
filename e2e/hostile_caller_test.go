package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// arrival is a request as it came out of the proxy.
type arrival struct {
	method, host, uri string
	credentials       []string
}

// recorder is an API that answers everything with 200, WebSocket handshakes too.
type recorder struct {
	*httptest.Server
	mu  sync.Mutex
	got []arrival
}

func startRecorder(t *testing.T) *recorder {
	t.Helper()
	a := new(recorder)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.got = append(a.got, arrival{r.Method, r.Host, r.RequestURI, r.Header.Values("Authorization")})
		_, _ = io.WriteString(w, "served")
	}))
	t.Cleanup(a.Close)
	t.Cleanup(a.CloseClientConnections)
	return a
}

// arrived is what has come since the last call.
func (a *recorder) arrived() []arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	got := a.got
	a.got = nil
	return got
}

// startHostileRig is the shortest configuration, logged in.
func startHostileRig(t *testing.T) (*recorder, *caddy) {
	t.Helper()
	as := startAS(t, time.Hour)
	a := startRecorder(t)
	c := startCaddy(t, site("device", "offline_access read:things"), as.Issuer(), a.URL)
	c.login(t)
	a.arrived()
	return a, c
}

// get11 is a GET with these lines in its header.
func get11(lines ...string) string {
	return "GET / HTTP/1.1\r\nHost: localhost\r\n" + strings.Join(append(lines, "\r\n"), "\r\n")
}

// form is a POST of a form, in one piece and in chunks.
func form(body string) (whole, chunked string) {
	const head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
	return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body),
		fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", head, len(body), body)
}

// TestRefusedRequestsNeverReachTheAPI is S41, S42, S44, S45, S56 and S58 of the scorecard.
func TestRefusedRequestsNeverReachTheAPI(t *testing.T) {
	parallel(t)
	a, c := startHostileRig(t)
	type request struct {
		raw  string
		want int
	}
	cases := map[string]request{
		"TRACE":             {"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		"TRACK":             {"TRACK / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		"FOO":               {"FOO / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		"get":               {"get / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		"a long method":     {strings.Repeat("A", 40) + " / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		"CONNECT":           {"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", 405},
		"CONNECT to us":     {"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		"CONNECT of /":      {"CONNECT / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		"a method with NUL": {"GE\x00T / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},

		"h2c":                         {get11("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), 403},
		"h2c, half":                   {get11("Connection: Upgrade", "Upgrade: h2c"), 403},
		"h2c, no Connection":          {get11("Upgrade: h2c"), 403},
		"HTTP2-Settings":              {get11("Connection: HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"), 403},
		"an unknown upgrade":          {get11("Connection: Upgrade", "Upgrade: foo"), 403},
		"TLS":                         {get11("Connection: Upgrade", "Upgrade: TLS/1.2"), 403},
		"two upgrades":                {get11("Connection: Upgrade", "Upgrade: websocket, h2c"), 403},
		"two Upgrade lines":           {get11("Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"), 403},
		"a handshake by POST":         {"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", 403},
		"a handshake with a body":     {get11("Connection: Upgrade", "Upgrade: websocket", "Content-Length: 5") + "GET /", 403},
		"a handshake of another site": {get11("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Origin: http://evil.example"), 403},

		"a foreign Origin":                 {get11("Origin: https://evil.example"), 403},
		"another port":                     {get11("Origin: http://localhost:3000"), 403},
		"null":                             {get11("Origin: null"), 403},
		"cross-site":                       {get11("Sec-Fetch-Site: cross-site"), 403},
		"same-site":                        {get11("Sec-Fetch-Site: same-site"), 403},
		"a foreign Referer":                {get11("Referer: http://evil.example/page"), 403},
		"a preflight":                      {"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: PUT\r\n\r\n", 403},
		"a preflight to a private network": {"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: GET\r\nAccess-Control-Request-Private-Network: true\r\nAccess-Control-Request-Local-Network: true\r\n\r\n", 403},
		"a preflight of nobody":            {"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nAccess-Control-Request-Method: PUT\r\n\r\n", 204},

		"a rebinding name":   {"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403},
		"its port":           {"GET / HTTP/1.1\r\nHost: evil.example:" + c.port + "\r\n\r\n", 403},
		"0.0.0.0":            {"GET / HTTP/1.1\r\nHost: 0.0.0.0:" + c.port + "\r\n\r\n", 403},
		"0":                  {"GET / HTTP/1.1\r\nHost: 0\r\n\r\n", 403},
		"[::]":               {"GET / HTTP/1.1\r\nHost: [::]\r\n\r\n", 403},
		"absolute, a name":   {"GET http://evil.example/latest HTTP/1.1\r\nHost: localhost\r\n\r\n", 403},
		"absolute, userinfo": {"GET http://user:pw@localhost/latest HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},

		"access_token":           {"GET /?access_token=x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
		"access_token, second":   {"GET /?a=b&access_token=x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
		"access_token, encoded":  {"GET /?%61ccess%5Ftoken=x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
		"access_token, absolute": {"GET http://localhost/?access_token=x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
		"access_token, the page": {"GET /.device-flow?access_token=x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},

		"two Hosts":            {"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400},
		"no Host":              {"GET / HTTP/1.1\r\n\r\n", 400},
		"an empty Host":        {"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
		"space before a colon": {"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400},
		"HTTP/0.9":             {"GET /a/path/of/more/than/a/few/bytes\r\n\r\n", 400},
		"two lengths":          {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
		"a negative length":    {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400},
		"an unknown coding":    {"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
		"two codings":          {"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 501},
	}
	for name, body := range map[string]string{"a form": "a=b&access_token=x", "a form, encoded": "%61ccess_token=x"} {
		whole, chunked := form(body)
		cases[name], cases[name+", chunked"] = request{whole, 400}, request{chunked, 400}
	}
	for name, r := range cases {
		t.Run(name, func(t *testing.T) {
			res := raw(t, c, r.raw)
			if res.status != r.want {
				t.Errorf("got %d %s, want %d", res.status, res.body, r.want)
			}
			if got := a.arrived(); len(got) != 0 {
				t.Errorf("the API received %v", got)
			}
			for name := range res.header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("the answer says %s", name)
				}
			}
			if res.status == 405 && len(strings.Fields(r.raw)[0]) < 33 && !strings.Contains(res.header.Get("Allow"), "GET, HEAD") { // Caddy itself refuses longer ones
				t.Errorf("Allow is %q", res.header.Get("Allow"))
			}
			if res.status == 403 && !strings.Contains(res.body, "setting") {
				t.Errorf("it names no setting: %s", res.body)
			}
		})
	}
}

// TestOddRequestsReachTheAPIOnlyWithOurCredential is S41, S43 and S45 for what is let through.
func TestOddRequestsReachTheAPIOnlyWithOurCredential(t *testing.T) {
	parallel(t)
	a, c := startHostileRig(t)
	whole, chunked := form("a=b&page=2")
	for name, r := range map[string]struct{ raw, uri string }{
		"absolute, link-local":  {"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "/latest"},
		"absolute, other Host":  {"GET http://localhost/latest HTTP/1.1\r\nHost: evil.example\r\n\r\n", "/latest"},
		"absolute, https":       {"GET https://localhost:444/latest HTTP/1.1\r\nHost: localhost\r\n\r\n", "/latest"},
		"a double slash":        {"GET //169.254.169.254/latest HTTP/1.1\r\nHost: localhost\r\n\r\n", "//169.254.169.254/latest"},
		"obs-fold":              {get11("X-A: b", " Authorization: Basic b3duOm93bg=="), "/"},
		"HTTP/1.0 without Host": {"GET /old HTTP/1.0\r\n\r\n", "/old"},
		"HTTP/1.0, absolute":    {"GET http://localhost/old HTTP/1.0\r\n\r\n", "/old"},
		"a form":                {whole, "/"},
		"a form in chunks":      {chunked, "/"},
		"a value":               {"GET /?q=access_token HTTP/1.1\r\nHost: localhost\r\n\r\n", "/?q=access_token"},
		"a compose neighbour":   {"GET /n HTTP/1.1\r\nHost: api-proxy\r\n\r\n", "/n"},
	} {
		t.Run(name, func(t *testing.T) {
			if res := raw(t, c, r.raw); res.status != 200 || res.body != "served" {
				t.Fatalf("%d %s", res.status, res.body)
			}
			got := a.arrived()
			if len(got) != 1 || got[0].uri != r.uri || "http://"+got[0].host != a.URL {
				t.Fatalf("the API received %v", got)
			}
			if v := got[0].credentials; len(v) != 1 || !strings.HasPrefix(v[0], "Bearer ") {
				t.Errorf("the API received %d credentials", len(v))
			}
		})
	}
}

// TestHTTP2WithoutTLSIsGuarded uses the protocol that Caddy takes on such a port from those who know that it does.
func TestHTTP2WithoutTLSIsGuarded(t *testing.T) {
	parallel(t)
	a, c := startHostileRig(t)
	h2c := client(t)
	h2c.Transport.(*http.Transport).Protocols = new(http.Protocols)
	h2c.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	for name, want := range map[string]int{"localhost": 200, "evil.example": 403, "0.0.0.0": 403} {
		r, err := http.NewRequest(http.MethodGet, c.url+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = name
		if res := do(t, h2c, r); res.status != want || len(a.arrived()) > 0 != (want == 200) {
			t.Errorf("%s: %d %s", name, res.status, res.body)
		}
		r.Host = "localhost"
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		if res := do(t, h2c, r); res.status != 403 || len(a.arrived()) > 0 {
			t.Errorf("cross-site: %d %s", res.status, res.body)
		}
	}
}

// TestNoSecondRequestIsSmuggled sends on one connection what some servers take for one request and others for two
// (S44, S45). The second asks for a host that is refused, so that it must not arrive in any reading.
func TestNoSecondRequestIsSmuggled(t *testing.T) {
	parallel(t)
	a, c := startHostileRig(t)
	const second = "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n"
	for name, first := range map[string]string{
		"length and chunks":          fmt.Sprintf("POST /first HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 5+len(second)),
		"chunks that end too early":  "POST /first HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
		"a GET with a length":        "GET /first HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
		"a handshake that fails":     "GET /first HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: x\r\n\r\n",
		"an upgrade that is refused": "GET /first HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"a tunnel that is refused":   "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"a bare line feed":           "POST /first HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n",
		"an extension of a chunk":    "POST /first HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\"\n\"\r\nx\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, c)
			if _, err := io.WriteString(conn, first+second); err != nil {
				t.Fatal(err)
			}
			var statuses []int
			for in := bufio.NewReader(conn); len(statuses) < 2; {
				res, err := http.ReadResponse(in, nil)
				if err != nil {
					break // closed, which is right as well
				}
				_, _ = io.Copy(io.Discard, res.Body)
				statuses = append(statuses, res.StatusCode)
			}
			if len(statuses) == 0 || len(statuses) == 2 && statuses[1] != 403 && statuses[1] != 400 {
				t.Errorf("answered %v", statuses)
			}
			for _, r := range a.arrived() {
				if r.uri != "/first" || len(r.credentials) != 1 {
					t.Errorf("the API received %s %s", r.method, r.uri)
				}
			}
		})
	}
}
