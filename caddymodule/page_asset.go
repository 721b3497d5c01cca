package caddymodule

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"net/http"
	"strconv"
	"sync"
)

var (
	//go:embed page.css
	pageCSS []byte
	//go:embed page.js
	pageJS []byte
	// assetVersion is in the query of every asset's URL, so that they can be
	// kept for good and still change with the next release.
	assetVersion = sync.OnceValue(func() string {
		h := sha256.New()
		h.Write(pageCSS)
		h.Write(pageJS)
		return hex.EncodeToString(h.Sum(nil))[:12]
	})
)

// asset serves what the page's HTML refers to. Style and script are files of
// their own, so that the policy needs no unsafe-inline.
func (p *page) asset(w http.ResponseWriter, r *http.Request, route string) bool {
	var body []byte
	var kind string
	switch route {
	case "page.css":
		body, kind = pageCSS, "text/css; charset=utf-8"
	case "page.js":
		body, kind = pageJS, "text/javascript; charset=utf-8"
	case "icon.svg":
		body, kind = []byte(tabIcon(r.URL.Query().Get("tone"))), "image/svg+xml"
	default:
		return false
	}
	// Only under its own version may it be kept: a page of another release asks
	// with another one.
	if r.URL.Query().Get("v") == assetVersion() {
		w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	}
	reply(w, r, http.StatusOK, kind, body)
	return true
}

// setPageHeaders sets what every answer of the page carries.
func setPageHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "+
		"connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
}

// reply writes a whole answer; to a HEAD its headers.
func reply(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) //nolint:gosec // an error is a caller who has left; HTML comes of html/template
	}
}
