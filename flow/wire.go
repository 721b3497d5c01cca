package flow

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// What a lifetime or an interval can be at most; more is nonsense or a joke.
const (
	maxTokenLifetime = 10 * 365 * 24 * time.Hour
	maxCodeLifetime  = 24 * time.Hour
	maxRetryAfter    = time.Hour

	defaultInterval     = 5 * time.Second // RFC 8628 §3.2
	minInterval         = 100 * time.Millisecond
	defaultCodeLifetime = 15 * time.Minute // for servers that leave out the required expires_in
)

// How long, in bytes, what is kept of an answer can be at most. It stands in the
// record, where a control character is six bytes, and on pages.
const (
	maxUserCode = 256
	maxURI      = 8 << 10
	maxCode     = 16 << 10
	maxToken    = 256 << 10 // a refresh token is not to be lost; some are JWTs with a person's groups in it
	maxList     = 16 << 10
)

// fields is an answer of an authorization server, whatever its encoding. Names
// are compared without case and underscores: servers send verification_uri and
// verificationUri.
type fields map[string]any

func fieldName(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }

// decodeFields reads JSON, or a form for servers that answer so (GitHub without
// an Accept header). ok is false for anything else, HTML and the empty body included.
func decodeFields(contentType string, body []byte) (f fields, ok bool) {
	body = trimText(body)
	if len(body) == 0 {
		return nil, false
	}
	if body[0] == '{' {
		m, err := decodeObject(body)
		if err != nil {
			// A token must not be lost over "expires_in": NaN.
			m, err = decodeObject(nullBareWords(body))
		}
		if err != nil {
			return nil, false
		}
		return normalize(m), true
	}
	mime, _, _ := strings.Cut(contentType, ";")
	mime = strings.ToLower(strings.TrimSpace(mime))
	labelled := mime == "application/x-www-form-urlencoded" || mime == "text/plain" || mime == ""
	if !labelled && bytes.ContainsAny(body, "<>\" \t\r\n") {
		return nil, false // a page; a form that a script has called one has none of these
	}
	if bytes.Count(body, []byte{'&'}) > maxValues {
		return nil, false
	}
	v, err := url.ParseQuery(string(body))
	if err != nil || !(v.Has("access_token") || v.Has("error") || v.Has("device_code")) {
		return nil, false
	}
	m := make(map[string]any, len(v))
	for k, vv := range v {
		m[k] = vv[0]
	}
	return normalize(m), true
}

// trimText leaves out what can stand around a text: a byte order mark, white space.
func trimText(b []byte) []byte { return bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))) }

// maxValues is more than any response has. A megabyte of tiny values would take
// fifty times its size in memory.
const maxValues = 10_000

func decodeObject(b []byte) (map[string]any, error) {
	if bytes.Count(b, []byte{','})+bytes.Count(b, []byte{'['})+bytes.Count(b, []byte{'{'}) > maxValues {
		return nil, errors.New("too many values")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	return m, nil
}

// normalize keeps the standard's own spelling, lower case with underscores,
// when several collide, and otherwise the one that sorts last.
func normalize(m map[string]any) fields {
	f := make(fields, len(m))
	from := make(map[string]string, len(m))
	for k, v := range m {
		n := fieldName(k)
		if other, taken := from[n]; taken && spelling(other, k) > 0 {
			continue
		}
		f[n], from[n] = v, k
	}
	return f
}

// spelling compares two spellings of a name; the better one is greater.
func spelling(a, b string) int {
	if lower := cmp.Compare(strings.ToLower(a), a) - cmp.Compare(strings.ToLower(b), b); lower != 0 {
		return -lower
	}
	return cmp.Or(cmp.Compare(strings.Count(a, "_"), strings.Count(b, "_")), cmp.Compare(a, b))
}

// nullBareWords replaces NaN, Infinity, undefined and the like, outside of
// strings, by null. What was valid JSON stays as it is.
func nullBareWords(b []byte) []byte {
	out := make([]byte, 0, len(b))
	inString := false
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case inString:
			if c == '\\' && i+1 < len(b) {
				out = append(out, c)
				i++
				c = b[i]
			} else if c == '"' {
				inString = false
			}
			out = append(out, c)
		case c == '"':
			inString = true
			out = append(out, c)
		case isLetter(c) || (c == '-' && i+1 < len(b) && isLetter(b[i+1])):
			j := i + 1
			for j < len(b) && isLetter(b[j]) {
				j++
			}
			switch word := string(b[i:j]); {
			case word == "true" || word == "false" || word == "null":
				out = append(out, word...)
			case len(out) > 0 && out[len(out)-1] >= '0' && out[len(out)-1] <= '9':
				out = append(out, word...) // the e of 1e4
			default:
				out = append(out, "null"...)
			}
			i = j - 1
		default:
			out = append(out, c)
		}
	}
	return out
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// text is the first of names that holds a non-empty string or a number.
func (f fields) text(names ...string) string {
	for _, n := range names {
		switch v := f[fieldName(n)].(type) {
		case string:
			if v != "" {
				return v
			}
		case json.Number:
			return v.String()
		}
	}
	return ""
}

// seconds is the first of names that holds a positive number of seconds, as an
// integer, a float or a string, capped at max. ok is false for everything else.
func (f fields) seconds(max time.Duration, names ...string) (d time.Duration, ok bool) {
	for _, n := range names {
		var s string
		switch v := f[fieldName(n)].(type) {
		case json.Number:
			s = v.String()
		case string:
			s = strings.TrimSpace(v)
		default:
			continue
		}
		x, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(x) || math.IsInf(x, 0) || x <= 0 {
			continue
		}
		if x >= max.Seconds() {
			return max, true
		}
		if d = time.Duration(x * float64(time.Second)); d > 0 {
			return d, true
		}
	}
	return 0, false
}

// list is a string split at spaces and commas, or an array of strings; of a long
// one, the beginning.
func (f fields) list(name string) []string {
	var out []string
	switch v := f[fieldName(name)].(type) {
	case string:
		out = strings.FieldsFunc(v, func(r rune) bool { return r == ' ' || r == ',' })
	case []any:
		for _, x := range v {
			if s, ok := x.(string); ok && s != "" {
				out = append(out, s)
			}
		}
	}
	size := 0
	for i, s := range out {
		if size += len(s) + 1; size > maxList {
			return out[:i:i]
		}
	}
	return out
}

func firstOf(in ...string) string {
	for _, s := range in {
		if s != "" {
			return s
		}
	}
	return ""
}

// retryAfter reads the header (RFC 9110 §10.2.3) in seconds or as a date.
// Nonsense and the past are 0; a day is cut to maxRetryAfter.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0
	}
	var d time.Duration
	if n, err := strconv.ParseUint(v, 10, 64); err == nil {
		d = maxRetryAfter
		if n < uint64(maxRetryAfter/time.Second) {
			d = time.Duration(n) * time.Second
		}
	} else if t, err := http.ParseTime(v); err == nil {
		// The server's own clock is the one its date means.
		if sent, err := http.ParseTime(h.Get("Date")); err == nil {
			now = sent
		}
		d = t.Sub(now)
	} else if len(v) > 19 && strings.Trim(v, "0123456789") == "" {
		d = maxRetryAfter
	}
	return min(max(d, 0), maxRetryAfter)
}
