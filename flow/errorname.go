package flow

import "strings"

// errorCode finds the error's name: error, then error_code, then message at a
// status of 400 and more, then the same in an error object. Of several, the
// first that means something counts: frameworks put {"error":"Bad Request"} or
// the status before it.
func (f fields) errorCode(status int) (code, description string) {
	description = f.text("error_description", "error_message", "reason")
	names := []string{numbered[f.text("sub_error")], f.text("error"), f.text("error_code")}
	if object, ok := f["error"].(map[string]any); ok {
		n := normalize(object)
		names = append(names, numbered[n.text("error_subcode")], n.text("code"), n.text("status"), n.text("message"))
		description = firstOf(n.text("message"), description)
	}
	if status >= 400 {
		names = append(names, f.text("message"), f.text("code"))
	}
	for _, n := range names {
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

// errorName is how errors are compared: "invalid device code" is a name, too.
func errorName(code string) string {
	return strings.ToLower(strings.NewReplacer(" ", "_", "-", "_").Replace(code))
}

// classify gives the kind of an error answer. The name comes first and the
// status second, since servers use 200, 400, 401, 403, 428 and 429 for the same
// name; only 429 outranks the name, for a rate limit can come as invalid_grant.
func classify(op, code string, status int) Kind {
	name := errorName(code)
	if name == "slow_down" && op == opPoll {
		return KindSlowDown
	}
	if status == 429 || status >= 500 || status == 408 {
		return KindTemporary
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
	case "server_error", "temporarily_unavailable", "rate_limit_exceeded", "too_many_user_codes", "slow_down":
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
	case "authorization_pending":
		kind = KindPending
	case "access_denied", "authorization_declined":
		kind = KindDenied
	case "expired_token", "token_expired", "expired", "invalid_code_pair",
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
