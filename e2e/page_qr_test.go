package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// decodeQR reads the QR codes in a picture by a program that is not ours.
func decodeQR(t *testing.T, png []byte) string {
	t.Helper()
	zbarimg, err := exec.LookPath("zbarimg")
	if err != nil {
		missing(t, "this test needs a QR decoder (Debian: apt-get install zbar-tools): %v", err)
	}
	picture := filepath.Join(t.TempDir(), "picture.png")
	if err := os.WriteFile(picture, png, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(zbarimg, "--quiet", "--raw", "--nodbus", "-Sdisable", "-Sqrcode.enable", picture).Output()
	if err != nil {
		return "nothing: " + err.Error()
	}
	return strings.TrimSuffix(string(out), "\n")
}

// picture is what a tab shows, to its end.
func picture(t *testing.T, tab context.Context) []byte {
	t.Helper()
	png, err := chromedp.Run(tab, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	return png
}

// quietZone is the least border, in modules, that ISO/IEC 18004 wants around a QR code; an image of our own has to bring it
// along, whatever is next to it.
const quietZone = 4

// margins measures the white border of the QR code in a tab, in modules: its path begins where the border ends.
const margins = `(() => {
	const svg = document.querySelector('main svg.qr') || document.querySelector('svg'), path = svg.querySelector('path').getBBox(), box = svg.viewBox.baseVal;
	return Math.min(path.x - box.x, path.y - box.y, box.x + box.width - path.x - path.width, box.y + box.height - path.y - path.height);
})()`

func (st *stage) testQR(t *testing.T, browser context.Context) {
	tab := newTab(t, browser)
	for _, name := range []string{"pending", "replacing"} {
		s := st.scene(name)
		want := s.shown.Login.VerificationURIComplete
		if want == "" {
			t.Fatal("the server offers no address with the code in it")
		}
		for _, l := range append([]look{smallPhone, wallScreen}, looks...) {
			l.put(t, tab)
			s.open(t, tab)
			if got := decodeQR(t, picture(t, tab)); got != want {
				t.Errorf("%s on a %s: the QR code says %q, want %q", name, l.name, got, want)
			}
		}
		// A phone's camera sees the code on a background as dark as it can be.
		darkPhone.put(t, tab)
		if got := evaluate[float64](t, tab, margins); got < quietZone {
			t.Errorf("%s: around the QR code are %v modules of white, want %d", name, got, quietZone)
		}
		browse(t, tab, "the QR code alone", chromedp.Navigate(s.url+"/qr.svg"))
		lightDesktop.put(t, tab)
		if got := decodeQR(t, picture(t, tab)); got != want {
			t.Errorf("%s: qr.svg says %q, want %q", name, got, want)
		}
		if got := evaluate[float64](t, tab, margins); got < quietZone {
			t.Errorf("%s: around qr.svg are %v modules of white, want %d", name, got, quietZone)
		}
	}
}

var pdfPages = regexp.MustCompile(`/Type\s*/Page\b`)

func (st *stage) testPrint(t *testing.T, browser context.Context) {
	tab := newTab(t, browser)
	for _, name := range []string{"pending", "replacing", "authorized", "denied", "misconfigured"} {
		s := st.scene(name)
		lightDesktop.put(t, tab)
		s.open(t, tab)
		want := seenEssentials(t, tab)
		browse(t, tab, "printing", media("print", "light")) // browsers print in light colours
		got := seenEssentials(t, tab)
		if got.Title != want.Title || got.Code != want.Code || got.QR != want.QR {
			t.Errorf("%s: on paper is %+v, on the screen %+v", s.name, got, want)
		}
		if l := s.shown.Login; l != nil {
			if !strings.Contains(strings.ReplaceAll(got.Text, "\n", ""), strings.TrimPrefix(l.VerificationURI, "https://")) {
				t.Errorf("%s: on paper the address is missing:\n%s", s.name, got.Text)
			}
			if text := decodeQR(t, picture(t, tab)); text != l.VerificationURIComplete {
				t.Errorf("%s: on paper the QR code says %q", s.name, text)
			}
		}
		if n := evaluate[int](t, tab, `Array.from(document.querySelectorAll('button, summary, input, progress, a.button')).filter(e => e.checkVisibility() && e.getBoundingClientRect().width > 0).length`); n != 0 {
			t.Errorf("%s: on paper are %d things to press", s.name, n)
		}
		if got := evaluate[string](t, tab, darkest); got != "" {
			t.Errorf("%s: on paper there are dark backgrounds or pale letters: %s", s.name, got)
		}
		pdf, err := chromedp.Run(tab, chromedp.PrintToPDF(chromedp.PDFPaper(chromedp.PaperA4)))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(pdfPages.FindAll(pdf, -1)); n < 1 || n > 2 || n > 1 && s.state == "pending" {
			t.Errorf("%s: it takes %d sheets of A4", s.name, n)
		}
	}
}

// darkest names what would waste ink or be invisible on paper: browsers leave out backgrounds, and what was white on
// dark is then white on white.
const darkest = `(() => {
	const luminance = colour => {
		const [r, g, b, a] = colour.match(/[\d.]+/g).map(Number);
		return a === 0 ? 1 : (0.299 * r + 0.587 * g + 0.114 * b) / 255;
	};
	return Array.from(document.body.querySelectorAll('*')).filter(e => {
		if (!e.checkVisibility() || e.closest('svg')) return false;
		const box = e.getBoundingClientRect(), style = getComputedStyle(e);
		if (box.width <= 1 || box.height <= 1) return false;
		const own = Array.from(e.childNodes).some(n => n.nodeType === 3 && n.data.trim());
		return luminance(style.backgroundColor) < .5 || own && luminance(style.color) > .5;
	}).map(e => e.tagName + '.' + e.className + ' ' + getComputedStyle(e).color + ' on ' + getComputedStyle(e).backgroundColor).join('\n');
})()`
