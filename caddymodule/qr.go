package caddymodule

import (
	"fmt"
	"html"
	"strings"

	"rsc.io/qr"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

const (
	// maxQR bounds the text of a QR code in bytes; beyond it a phone no longer
	// reads the code off a screen.
	maxQR = 1024
	// quietZone is the white border that ISO/IEC 18004 asks for, in modules.
	quietZone = 4
)

// loginQR draws the address of a pending login, with the code in it where the
// server offers that (RFC 8628 §3.3.1). Without a link that is fit to be opened
// there is no code either.
func (c *catalogue) loginQR(l *flow.LoginInfo) (string, bool) {
	if l == nil {
		return "", false
	}
	raw := l.VerificationURIComplete
	if raw == "" {
		raw = l.VerificationURI
	}
	u, ok := safeLink(raw)
	if !ok {
		return "", false
	}
	return qrSVG(u.String(), c.text("qr.title"), c.text("qr.opens", "host", clean(u.Host, maxText)))
}

// encodeQR makes the matrix of a QR code.
func encodeQR(text string) (*qr.Code, bool) {
	if len(text) > maxQR {
		return nil, false
	}
	level := qr.M
	if len(text) > 250 {
		level = qr.L // larger modules matter more than redundancy on a clean screen
	}
	code, err := qr.Encode(text, level)
	return code, err == nil
}

// qrSVG draws text as a QR code, black on white whatever the page's colours:
// many readers do not know an inverted one. title and description are what a screen
// reader says of it.
func qrSVG(text, title, description string) (string, bool) {
	code, ok := encodeQR(text)
	if !ok {
		return "", false
	}
	size := code.Size + 2*quietZone
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" class="qr" viewBox="0 0 %d %d" shape-rendering="crispEdges" role="img" aria-labelledby="qr-title qr-desc">`, size, size)
	fmt.Fprintf(&b, `<title id="qr-title">%s</title><desc id="qr-desc">%s</desc>`, html.EscapeString(title), html.EscapeString(description))
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/><path fill="#000" d="`, size, size)
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			start := x
			for code.Black(x, y) {
				x++
			}
			if x > start {
				fmt.Fprintf(&b, "M%d %dh%dv1h-%dz", start+quietZone, y+quietZone, x-start, x-start)
			}
		}
	}
	b.WriteString(`"/></svg>`)
	return b.String(), true
}
