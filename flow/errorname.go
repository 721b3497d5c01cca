package flow

import (
	"bytes"
	"slices"
	"strings"
)

// errorCode finds the error's name: error, then error_code, then the same in an
// object or a list, then message and others at a status of 400 and more. Of several,
// the first that means something counts: frameworks put {"error":"Bad Request"} or
// the status before it.
func (f fields) errorCode(status int) (code, description string) {
	description = f.text("error_description", "error_message", "error_summary", "reason")
	names := []string{numbered[f.text("sub_error")], f.text("error"), f.text("error_code")}
	for _, v := range []any{f["error"], f["errors"]} {
		if list, ok := v.([]any); ok && len(list) > 0 {
			v = list[0]
		}
		switch v := v.(type) {
		case string:
			names = append(names, v)
		case map[string]any:
			n := normalize(v)
			names = append(names, numbered[n.text("error_subcode")], n.text("code"), n.text("status"), n.text("type"),
				n.text("error"), n.text("name"), n.text("message"))
			description = firstOf(n.text("message"), description)
		}
	}
	var perhaps []string // members that are mostly about something else
	if status >= 400 {
		names = append(names, f.text("message"), f.text("code"))
		// AWS has __type, RFC 9457 title and detail.
		perhaps = []string{f.text("type"), f.text("status"), f.text("title"), f.text("detail")}
	}
	for _, n := range append(slices.Clip(names), perhaps...) {
		if _, known := meaning(opPoll, errorName(n)); known {
			return n, description
		}
	}
	for _, n := range names {
		if n != "" && n != "0" {
			return n, description
		}
	}
	if _, ok := f["error"].(map[string]any); ok {
		code = "error"
	}
	return code, description
}

// numbered are the names of errors that two vendors count instead: Meta in
// error_subcode, Huawei in sub_error.
var numbered = map[string]string{
	"1349174": "authorization_pending", "20411": "authorization_pending",
	"1349172": "slow_down",
	"1349173": "access_denied", "20414": "access_denied",
	"1349152": "expired_token", "20404": "expired_token",
}

// errorName is how errors are compared: "invalid device code", ExpiredToken and
// com.example#ExpiredTokenException are names, too.
func errorName(code string) string {
	if i := strings.LastIndexByte(code, '#'); i >= 0 {
		code = code[i+1:]
	}
	code = strings.TrimSuffix(strings.Trim(code, " .\t\r\n"), "Exception")
	b := make([]byte, 0, len(code)+4)
	for i := range len(code) {
		c := code[i]
		switch {
		case c == ' ' || c == '-':
			c = '_'
		case c >= 'A' && c <= 'Z':
			if i > 0 && code[i-1] >= 'a' && code[i-1] <= 'z' {
				b = append(b, '_')
			}
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return string(b)
}

// kind is that of an error answer with that name. A page says nothing about a
// refresh token, whatever its status: it is from an ingress, a firewall or a
// captive portal, and the server has not looked at the request.
func (a *answer) kind(op, code string) Kind {
	kind := classify(op, code, a.status)
	if kind == KindDoubtful && !a.ok && isPage(a.header.Get("Content-Type"), a.body) {
		return KindTemporary
	}
	return kind
}

// isPage reports whether a body is, or is called, something for a browser.
func isPage(contentType string, body []byte) bool {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	if len(body) == 0 {
		return false // an empty 400 is how some servers refuse
	}
	mime, _, _ := strings.Cut(contentType, ";")
	return body[0] == '<' || strings.EqualFold(strings.TrimSpace(mime), "text/html")
}

// classify gives the kind of an error answer. The name comes first and the
// status second, since servers use 200, 400, 401, 403, 428 and 429 for the same
// name; only 429 outranks the name, for a rate limit can come as invalid_grant.
func classify(op, code string, status int) Kind {
	name := errorName(code)
	if name == "slow_down" && op == opPoll {
		return KindSlowDown
	}
	switch {
	case status == 408 || status == 429 || status >= 500:
		return KindTemporary
	case status == 407 || status == 421 || status == 425:
		return KindTemporary // a proxy, or the connection: the server has not looked at it
	}
	kind, known := meaning(op, name)
	switch {
	case op == opRefresh && status < 400 && name == "":
		return KindTemporary // a page, an empty body: nobody has refused anything
	case op == opRefresh && !known:
		return KindDoubtful
	case known:
		return kind
	case name == "":
		return KindTemporary
	}
	// RFC 8628 §3.5: any other error ends the login.
	return KindConfiguration
}

// meaning is what a name says at an operation, and whether it is a name that
// some server uses at any.
func meaning(op, name string) (kind Kind, known bool) {
	switch name {
	case "server_error", "temporarily_unavailable", "too_many_user_codes", "slow_down",
		"rate_limit_exceeded", "rate_limited", "too_many_requests", "quota_exceeded":
		return KindTemporary, true
	case "invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type",
		"device_flow_disabled", "incorrect_client_credentials", "invalid_target":
		return KindConfiguration, true
	case "invalid_grant":
		switch op {
		case opRefresh:
			return KindReauthorize, true
		case opPoll:
			return KindExpired, true
		}
		return KindConfiguration, true
	case "bad_refresh_token": // GitHub's, with status 200
		if op == opRefresh {
			return KindReauthorize, true
		}
		return KindConfiguration, true
	}
	if op == opRefresh {
		return KindDoubtful, name == "invalid_request" || name == "access_denied"
	}
	switch name {
	case "authorization_pending", "pending":
		kind = KindPending
	case "access_denied", "authorization_declined", "authorization_denied", "user_denied":
		kind = KindDenied
	case "expired_token", "token_expired", "expired", "code_expired", "device_code_expired", "invalid_code_pair",
		"bad_verification_code", "incorrect_device_code", "invalid_device_code":
		kind = KindExpired
	case "invalid_request":
		return KindConfiguration, true
	default:
		return KindConfiguration, false
	}
	if op != opPoll {
		kind = KindConfiguration // there is no code yet
	}
	return kind, true
}
