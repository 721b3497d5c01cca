package e2e

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// TestLegacyCallersAreAuthenticated sends what devices send, none of which knows of tokens, through one login.
func TestLegacyCallersAreAuthenticated(t *testing.T) {
	parallel(t)
	as, a, c := startProxy(t, 3*time.Second)

	t.Run("callers", func(t *testing.T) { // returns when those in parallel have ended
		for name, call := range map[string]func(*testing.T){
			"curl":                            func(t *testing.T) { callByCurl(t, c) },
			"HTTP1.0WithoutHost":              func(t *testing.T) { callByHTTP10(t, c) },
			"WebSocketOutlivesTheToken":       func(t *testing.T) { callByWebSocket(t, c, as) },
			"ServerSentEventsOutliveTheToken": func(t *testing.T) { listenToEvents(t, c, as) },
			"AnswerLaterThanTheTokenLives":    func(t *testing.T) { callSlowly(t, c, as) },
			"Upload50MB":                      func(t *testing.T) { upload(t, c) },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				call(t)
			})
		}
	})

	// The API refuses a request that has not exactly one bearer token, so the tests above would have failed. This
	// says that it was asked at all.
	paths := map[string]int{}
	for _, r := range a.requests() {
		paths[r.path]++
	}
	for _, path := range []string{"/curl", "/http10", "/ws", "/events", "/slow", "/upload"} {
		if paths[path] == 0 && (path != "/curl" || hasCurl()) {
			t.Errorf("the API never saw %s", path)
		}
	}
}

func hasCurl() bool {
	_, err := exec.LookPath("curl")
	return err == nil
}

func callByCurl(t *testing.T, c *caddy) {
	if !hasCurl() {
		missing(t, "this test needs curl in PATH")
	}
	cmd := exec.Command("curl", "--silent", "--show-error", "--fail", "--max-time", "30", "--noproxy", "*", c.url+"/curl")
	cmd.Env = environment(newHome(t))
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "hello from the API" {
		t.Fatalf("curl: %v, %s", err, out)
	}
}

// dial opens a connection to the proxy for a caller that writes its own bytes.
func dial(t *testing.T, c *caddy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+c.port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// raw sends bytes on a connection of their own and reads the one answer.
func raw(t *testing.T, c *caddy, request string) reply {
	t.Helper()
	conn := dial(t, c)
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return reply{res.StatusCode, res.Header, string(body)}
}

// callByHTTP10 is a request as serial converters and old firmware send it.
func callByHTTP10(t *testing.T, c *caddy) {
	if res := raw(t, c, "GET /http10 HTTP/1.0\r\n\r\n"); res.status != 200 || res.body != "hello from the API" {
		t.Fatalf("HTTP/1.0 without Host: %d %s", res.status, res.body)
	}
}

// callByWebSocket does the handshake and the frames by hand (RFC 6455), without an Origin, as a device does, with an
// echo before and after the token of the handshake has been renewed and has expired.
func callByWebSocket(t *testing.T, c *caddy, as *flowtest.Server) {
	conn := dial(t, c)
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: Upgrade, Authorization\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", c.port)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The answer to the key above, from section 1.3 of the RFC.
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("the handshake: %d %v", res.StatusCode, res.Header)
	}
	echo := func(message string) {
		t.Helper()
		frame := []byte{0x81, 0x80 | byte(len(message)), 1, 2, 3, 4} // final text frame, masked (section 5.2)
		for i := range len(message) {
			frame = append(frame, message[i]^frame[2+i%4])
		}
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		back := make([]byte, 2+len(message))
		if _, err := io.ReadFull(in, back); err != nil {
			t.Fatal(err)
		}
		if got, want := binary.BigEndian.Uint16(back), uint16(0x8100|len(message)); got != want || string(back[2:]) != message {
			t.Fatalf("the echo: %#04x %q, want %#04x %q", got, back[2:], want, message)
		}
	}
	echo("ping from a device")
	outlive(t, as)
	echo("and once more, with a token that is long gone")
}

// outlive waits for two refreshes: the token that was in use before has expired then.
func outlive(t *testing.T, as *flowtest.Server) {
	t.Helper()
	before := as.Stats().Refreshes
	eventually(t, patience, "two refreshes", func() bool { return as.Stats().Refreshes >= before+2 })
}

// listenToEvents holds an event stream open while the token it was opened with is renewed and expires.
func listenToEvents(t *testing.T, c *caddy, as *flowtest.Server) {
	refreshes := as.Stats().Refreshes
	opened := time.Now()
	res, err := client(t).Get(c.url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		t.Fatalf("opening the stream: %d", res.StatusCode)
	}
	lines := bufio.NewScanner(res.Body)
	next := 1
	// Two lifetimes of the token, and two refreshes.
	for time.Since(opened) < 6*time.Second || as.Stats().Refreshes < refreshes+2 {
		if time.Since(opened) > 30*time.Second {
			t.Fatalf("%d refreshes in 30 s, want 2", as.Stats().Refreshes-refreshes)
		}
		if !lines.Scan() {
			t.Fatalf("the stream ended after event %d: %v", next-1, lines.Err())
		}
		if lines.Text() == "" {
			continue
		}
		if got := lines.Text(); got != "data: "+strconv.Itoa(next) {
			t.Fatalf("event %d reads %q", next, got)
		}
		next++
	}
}

// callSlowly waits for an answer that comes when the token of its request has expired.
func callSlowly(t *testing.T, c *caddy, as *flowtest.Server) {
	refreshes := as.Stats().Refreshes
	if res := get(t, client(t), c.url+"/slow", ""); res.status != 200 || res.body != "hello from the API" {
		t.Fatalf("a slow answer: %d %s", res.status, res.body)
	}
	if as.Stats().Refreshes == refreshes {
		t.Fatalf("no refresh within %v", slowAnswer)
	}
}

// upload sends more than the proxy may keep in memory, without saying how much, and compares the hash at the API.
func upload(t *testing.T, c *caddy) {
	digest := sha256.New()
	body := io.TeeReader(io.LimitReader(rand.Reader, 50<<20), digest)
	r, err := http.NewRequest(http.MethodPost, c.url+"/upload", body)
	if err != nil {
		t.Fatal(err)
	}
	res := do(t, client(t), r)
	if want := hex.EncodeToString(digest.Sum(nil)); res.status != 200 || res.body != want {
		t.Fatalf("the API received something else: %d %s, want %s", res.status, res.body, want)
	}
}

// TestCallersCannotChangeTheirCredentials sends each way in which a caller might have the token removed, doubled or
// replaced; the API must receive exactly the one injected value, and no Authorization trailer.
func TestCallersCannotChangeTheirCredentials(t *testing.T) {
	parallel(t)
	_, a, c := startProxy(t, time.Hour)
	const own = "Basic b3duOm93bg=="
	for name, headers := range map[string]string{
		"ConnectionAuthorization":     "Connection: Authorization\r\n",
		"ConnectionInOtherCase":       "Connection: keep-alive, aUTHORIZATION\r\n",
		"ConnectionOnTwoLines":        "Connection: keep-alive\r\nConnection: authorization\r\n",
		"ConnectionAndOwn":            "Connection: Authorization\r\nAuthorization: " + own + "\r\n",
		"OwnAuthorization":            "Authorization: " + own + "\r\n",
		"OwnAuthorizationTwice":       "Authorization: " + own + "\r\nAuthorization: Bearer mine\r\n",
		"OwnAuthorizationInLowerCase": "authorization: " + own + "\r\n",
		"OwnAuthorizationEmpty":       "Authorization:\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			res := raw(t, c, "GET /"+name+" HTTP/1.1\r\nHost: 127.0.0.1\r\n"+headers+"\r\n")
			requireInjected(t, a, "/"+name, res)
		})
	}
	for name, headers := range map[string]string{
		"TrailerAuthorization":            "Trailer: Authorization\r\n",
		"TrailerAuthorizationInLowerCase": "TE: trailers\r\nTrailer: x-checksum, authorization\r\n",
		"TrailerAuthorizationUnannounced": "",
		"TrailerAndConnection":            "Connection: Authorization, Trailer\r\nTrailer: Authorization\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			res := raw(t, c, "POST /"+name+" HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"+headers+
				"\r\n4\r\nbody\r\n0\r\nAuthorization: "+own+"\r\n\r\n")
			requireInjected(t, a, "/"+name, res)
		})
	}
}

// requireInjected checks an answer, and what the API received for it.
func requireInjected(t *testing.T, a *api, path string, res reply) {
	t.Helper()
	if res.status != 200 {
		t.Fatalf("got %d %s", res.status, res.body)
	}
	r, err := received(a, path)
	if err != nil {
		t.Fatal(err)
	}
	values := r.header.Values("Authorization")
	if len(values) != 1 || !strings.HasPrefix(values[0], "Bearer ") || !a.valid(strings.TrimPrefix(values[0], "Bearer ")) {
		t.Errorf("the API received %d Authorization values, not the injected one", len(values))
	}
	for name := range r.trailer {
		if strings.EqualFold(name, "Authorization") {
			t.Errorf("the API received the trailer %s", name)
		}
	}
}

// received is the one request that the API got at a path.
func received(a *api, path string) (seen, error) {
	var found []seen
	for _, r := range a.requests() {
		if r.path == path {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		return seen{}, errors.New("the API received " + strconv.Itoa(len(found)) + " requests for " + path + ", want 1")
	}
	return found[0], nil
}
