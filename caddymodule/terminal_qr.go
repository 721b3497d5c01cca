package caddymodule

import (
	"strings"

	"rsc.io/qr"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// maxColumns bounds a QR code in a terminal: a line that is wrapped tears it apart.
const maxColumns = 80

// terminalQR draws the address of a pending login for a terminal, two modules to
// a character. It follows the rules of [loginQR], but takes the address without
// the code in it where the one with the code gives a drawing too wide.
//
// With colour, it is black on white whatever the terminal's own colours. Without,
// the light modules are drawn and the dark ones left out, since most terminals
// are dark: in a light one, the code appears inverted, which newer phones read
// and others do not. Nothing could be drawn that is right in both.
func terminalQR(l *flow.LoginInfo, colour bool) (string, bool) {
	if l == nil {
		return "", false
	}
	for _, raw := range []string{l.VerificationURIComplete, l.VerificationURI} {
		if raw == "" {
			continue
		}
		u, ok := safeLink(raw)
		if !ok {
			return "", false
		}
		if code, ok := encodeQR(u.String()); ok && code.Size+2*quietZone <= maxColumns {
			return halfBlocks(code, colour), true
		}
	}
	return "", false
}

const (
	// The eight colours of ECMA-48, which a serial console knows as well. White is
	// a light grey on many, which readers do not mind.
	blackOnWhite = "\x1b[30;47m"
	noColour     = "\x1b[0m"
)

// halfBlocks draws a QR code and its quiet zone. Each line ends in a newline, and
// in itself: with colours, nothing spills over to what follows.
func halfBlocks(code *qr.Code, colour bool) string {
	// By which half of a character is in the foreground: upper, lower.
	blocks := map[[2]bool]string{{}: " ", {true, false}: "▀", {false, true}: "▄", {true, true}: "█"}
	// The foreground is what the terminal draws with: black here, else the light one.
	drawn := func(x, y int) bool { return code.Black(x, y) == colour }
	var b strings.Builder
	for y := -quietZone; y < code.Size+quietZone; y += 2 {
		if colour {
			b.WriteString(blackOnWhite)
		}
		for x := -quietZone; x < code.Size+quietZone; x++ {
			b.WriteString(blocks[[2]bool{drawn(x, y), drawn(x, y+1)}])
		}
		if colour {
			b.WriteString(noColour)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
