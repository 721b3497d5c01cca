package caddymodule

import (
	"strconv"
	"strings"
)

const (
	typeHTML    = "text/html"
	typeJSON    = "application/json"
	typePlain   = "text/plain"
	typeProblem = "application/problem+json"
)

// maxRanges bounds what is read of an Accept header. Browsers send about eight.
const maxRanges = 64

// mediaRange is one element of Accept.
type mediaRange struct {
	kind, sub string
	q         float64
}

// negotiate picks one of the offered media types (RFC 9110 §12.5.1). The highest
// quality wins; among equals the range that names the type more closely, then
// the one that comes first, then fallback. It is fallback too when nothing fits:
// an answer in another format helps more than 406.
func negotiate(accept, offers []string, fallback string) string {
	ranges := parseAccept(strings.Join(accept, ","))
	best, bestQ, bestSpecific, bestAt := fallback, 0.0, 0, len(ranges)
	for _, offer := range offers {
		q, specific, at := quality(ranges, offer)
		if q == 0 {
			continue
		}
		better := q > bestQ || q == bestQ && (specific > bestSpecific || specific == bestSpecific && at < bestAt)
		same := q == bestQ && specific == bestSpecific && at == bestAt
		if better || same && offer == fallback {
			best, bestQ, bestSpecific, bestAt = offer, q, specific, at
		}
	}
	return best
}

// quality is how much offer is wanted, by the range that fits it most closely
// (2 by name, 1 by type/*, 0 by */*), and where that range stands.
func quality(ranges []mediaRange, offer string) (q float64, specific, at int) {
	kind, sub, _ := strings.Cut(offer, "/")
	specific = -1
	for i, m := range ranges {
		s := -1
		switch {
		case m.kind == kind && m.sub == sub:
			s = 2
		case m.kind == kind && m.sub == "*":
			s = 1
		case m.kind == "*" && m.sub == "*":
			s = 0
		}
		if s > specific {
			q, specific, at = m.q, s, i
		}
	}
	return q, specific, at
}

// parseAccept reads an Accept header and passes over what is malformed.
// Parameters other than q are ignored: text/html;charset=utf-8 means text/html.
func parseAccept(s string) []mediaRange {
	var ranges []mediaRange
	for _, element := range splitUnquoted(s, ',', maxRanges) {
		params := splitUnquoted(element, ';', maxRanges)
		kind, sub, ok := strings.Cut(strings.ToLower(strings.TrimSpace(params[0])), "/")
		if !ok || !isToken(kind) || !isToken(sub) || kind == "*" && sub != "*" {
			continue
		}
		m := mediaRange{kind, sub, 1}
		for _, param := range params[1:] {
			name, value, _ := strings.Cut(param, "=")
			if strings.EqualFold(strings.TrimSpace(name), "q") {
				q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				ok = err == nil && q >= 0 && q <= 1
				m.q = q
				break
			}
		}
		if ok {
			ranges = append(ranges, m)
		}
	}
	return ranges
}

// splitUnquoted splits at sep outside of quoted strings (RFC 9110 §5.6.4) into at
// most limit parts; the rest is dropped.
func splitUnquoted(s string, sep byte, limit int) []string {
	var parts []string
	start, quoted := 0, false
	for i := 0; i < len(s) && len(parts) < limit; i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	if len(parts) < limit {
		parts = append(parts, s[start:])
	}
	return parts
}

// isToken reports whether s is a token (RFC 9110 §5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}
