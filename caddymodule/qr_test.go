package caddymodule

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"rsc.io/qr"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// modules reads the black modules back from the drawing.
func modules(t *testing.T, svg string) (map[[2]int]bool, int) {
	t.Helper()
	box := regexp.MustCompile(`viewBox="0 0 (\d+) (\d+)"`).FindStringSubmatch(svg)
	if box == nil || box[1] != box[2] {
		t.Fatalf("no square viewBox in %.200s", svg)
	}
	size, _ := strconv.Atoi(box[1])
	black := map[[2]int]bool{}
	for _, run := range regexp.MustCompile(`M(\d+) (\d+)h(\d+)v1h-(\d+)z`).FindAllStringSubmatch(svg, -1) {
		x, _ := strconv.Atoi(run[1])
		y, _ := strconv.Atoi(run[2])
		n, _ := strconv.Atoi(run[3])
		if run[3] != run[4] {
			t.Fatalf("open run %s", run[0])
		}
		for i := range n {
			black[[2]int{x + i, y}] = true
		}
	}
	return black, size
}

func TestQRDrawingHasEveryModuleAndAQuietZone(t *testing.T) {
	for _, text := range []string{"https://a.example", "https://acme.eu.auth0.com/activate?user_code=QTZL-MCBW", "https://a.example/" + strings.Repeat("x", 900)} {
		svg, ok := qrSVG(text, "QR code", "")
		if !ok {
			t.Fatal(text)
		}
		level := qr.M
		if len(text) > 250 {
			level = qr.L
		}
		code, err := qr.Encode(text, level)
		if err != nil {
			t.Fatal(err)
		}
		black, size := modules(t, svg)
		if size != code.Size+2*quietZone {
			t.Errorf("size %d for %d modules", size, code.Size)
		}
		for y := range size {
			for x := range size {
				if black[[2]int{x, y}] != code.Black(x-quietZone, y-quietZone) {
					t.Fatalf("%.40s: module %d, %d is wrong", text, x, y)
				}
			}
		}
	}
}

func TestQRPrefersTheAddressWithTheCode(t *testing.T) {
	now := time.Now()
	plain := flow.LoginInfo{UserCode: "A", VerificationURI: "https://a.example/device", ExpiresAt: now}
	complete := plain
	complete.VerificationURIComplete = "https://a.example/device?user_code=A"
	bad := plain
	bad.VerificationURIComplete = "javascript:alert(1)"
	for _, c := range []struct {
		in   flow.LoginInfo
		want string
	}{{plain, plain.VerificationURI}, {complete, complete.VerificationURIComplete}} {
		got, _ := english().loginQR(&c.in)
		if want, _ := qrSVG(c.want, "QR code", "Opens the login page at a.example"); got != want || got == "" {
			t.Errorf("not the code of %s", c.want)
		}
	}
	if _, ok := english().loginQR(&bad); ok {
		t.Error("a bad complete address is drawn, or passed over in silence")
	}
	if _, ok := english().loginQR(nil); ok {
		t.Error("a code without a login")
	}
}

func TestQRIsServedWhileACodeIsOutOnly(t *testing.T) {
	for name, st := range sampleStatuses(time.Now()) {
		w := do(newFake(st).page(), "GET", testPath+"/qr.svg")
		want := 404
		if st.Login != nil {
			want = 200
		}
		if w.Code != want {
			t.Errorf("%s: %d", name, w.Code)
		}
		if name == "pending" {
			if w.Header().Get("Content-Type") != "image/svg+xml" {
				t.Error(w.Header())
			}
			golden(t, "qr.svg", w.Body.String())
		}
	}
}

func TestQRIsLeftOutWhereNoPhoneWouldReadIt(t *testing.T) {
	for n, want := range map[int]bool{maxQR: true, maxQR + 1: false} {
		raw := "https://a.example/" + strings.Repeat("x", n-len("https://a.example/"))
		if _, ok := english().loginQR(&flow.LoginInfo{VerificationURI: raw}); ok != want {
			t.Errorf("%d bytes: %v", n, ok)
		}
	}
}

func TestQRNamesItsHostWithoutMarkup(t *testing.T) {
	svg, _ := qrSVG("https://a.example", "QR", `Opens <b>"&`)
	if !strings.Contains(svg, fmt.Sprintf("Opens %s<", "&lt;b&gt;&#34;&amp;")) {
		t.Errorf("%.400s", svg)
	}
}
