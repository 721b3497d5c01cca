package flowtest

import (
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

const (
	deviceGrant   = "urn:ietf:params:oauth:grant-type:device_code"           // RFC 8628 section 3.4
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523 section 2.2
	bodyLimit     = 1 << 20
)

// refusal is an answer to a request that is wrong in itself. The violation is empty where the fault is not the client
// software's: a wrong secret is a matter of configuration.
type refusal struct {
	reply     reply
	violation string
}

func refuse(status int, description string) *refusal {
	return &refusal{reply: errorReply(status, "invalid_request", description), violation: description}
}

// readForm reads a request to one of the endpoints that RFC 6749 section 3.2 rules: POST, form-encoded, all parameters
// in the body, none of them twice. Parameters without a value count as left out (section 3.1).
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, *refusal) {
	if r.Method != http.MethodPost {
		bad := refuse(http.StatusMethodNotAllowed, "the method must be POST, not "+r.Method)
		bad.reply.header.Set("Allow", "POST")
		return url.Values{}, bad
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		return url.Values{}, refuse(http.StatusBadRequest, "the body cannot be read or is too large")
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/x-www-form-urlencoded" {
		return url.Values{}, refuse(http.StatusBadRequest, "the body must be application/x-www-form-urlencoded")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return form, refuse(http.StatusBadRequest, "the body is not well-formed")
	}
	r.PostForm, r.Form = form, form // for scripted functions; the body is used up
	if r.URL.RawQuery != "" {
		return form, refuse(http.StatusBadRequest, "parameters belong in the body, not in the URL")
	}
	for name, values := range form {
		if len(values) > 1 && name != "resource" { // RFC 8707 section 2 allows several resources
			return form, refuse(http.StatusBadRequest, fmt.Sprintf("parameter %q occurs %d times", name, len(values)))
		}
	}
	return form, nil
}

// authenticate checks the client (RFC 6749 sections 2.3 and 3.2.1). One request may use one method only.
func authenticate(x *exchange) *refusal {
	cfg, form := x.cfg, x.form
	id, secret := form.Get("client_id"), form.Get("client_secret")
	assertion := form.Get("client_assertion")
	methods := 0
	if secret != "" {
		methods++
	}
	if assertion != "" || form.Get("client_assertion_type") != "" {
		methods++
	}
	authorization, basic := x.r.Header["Authorization"]
	if basic {
		methods++
	}
	if methods > 1 || len(authorization) > 1 {
		return refuse(http.StatusBadRequest, "more than one client authentication method in one request")
	}
	if basic {
		user, password, err := basicCredentials(authorization[0])
		if err != nil {
			bad := unauthenticated(true)
			bad.violation = "Authorization header: " + err.Error()
			return bad
		}
		if id != "" && id != user {
			return refuse(http.StatusBadRequest, "client_id in the body differs from the one in Authorization")
		}
		id, secret = user, password
	}
	if id == "" && assertion == "" {
		return refuse(http.StatusBadRequest, "client_id is missing")
	}
	if id != cfg.ClientID && (id != "" || assertion == "") {
		return unauthenticated(basic)
	}
	switch {
	case cfg.VerifyAssertion != nil:
		if assertion == "" {
			return unauthenticated(basic)
		}
		if form.Get("client_assertion_type") != assertionType {
			return refuse(http.StatusBadRequest, "client_assertion_type must be "+assertionType)
		}
		if err := cfg.VerifyAssertion(assertion); err != nil {
			bad := unauthenticated(false)
			bad.violation = "client assertion refused: " + err.Error()
			return bad
		}
	case cfg.ClientSecret != "":
		if secret != cfg.ClientSecret {
			return unauthenticated(basic)
		}
	case methods > 0:
		bad := unauthenticated(basic)
		bad.violation = "a public client must not authenticate"
		return bad
	}
	return nil
}

// unauthenticated is invalid_client. RFC 6749 section 5.2: with WWW-Authenticate if the client used Authorization.
func unauthenticated(basic bool) *refusal {
	out := &refusal{reply: errorReply(http.StatusUnauthorized, "invalid_client", "unknown client or wrong client authentication")}
	if basic {
		out.reply.header.Set("WWW-Authenticate", `Basic realm="flowtest"`)
	}
	return out
}

// basicCredentials decodes what RFC 6749 section 2.3.1 encodes: form-urlencoding first, then Basic.
func basicCredentials(header string) (id, secret string, err error) {
	scheme, encoded, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", fmt.Errorf("the scheme is not Basic")
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimLeft(encoded, " "))
	if err != nil {
		return "", "", fmt.Errorf("the credentials are not base64")
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", fmt.Errorf("the credentials hold no colon")
	}
	if id, err = url.QueryUnescape(user); err != nil {
		return "", "", fmt.Errorf("the client_id is not form-urlencoded")
	}
	if secret, err = url.QueryUnescape(password); err != nil {
		return "", "", fmt.Errorf("the client secret is not form-urlencoded")
	}
	return id, secret, nil
}
