package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestBadInputIsNamedWithItsPlaceAndRemedy loads every mistake of a configuration that can be known without asking
// anybody. Each message says where: by file and line, or by the name of the session; and what to write instead.
func TestBadInputIsNamedWithItsPlaceAndRemedy(t *testing.T) {
	parallel(t)
	// settings is the block of a short form, one a line; line 4 of the Caddyfile is its first.
	short := func(settings string) string {
		return "http://:{$PORT} {\n\tbind 127.0.0.1\n\tdevice_flow {$API} {\n" + settings + "\n\t}\n}\n"
	}
	// named is a session acme in the global options, whose settings begin at line 3, with a site of that body.
	named := func(settings, body string) string {
		return "{\n\tdevice_flow acme {\n" + settings + "\n\t}\n}\nhttp://:{$PORT} {\n\tbind 127.0.0.1\n" + body + "\n}\n"
	}
	const good = "issuer {$ISSUER}\nclient_id device\n"
	const atAcme = "device_flow {$API} {\nsession acme\n}\n"

	for name, tc := range map[string]struct {
		config string
		line   int      // where; 0: the session's name says it
		want   []string // in the message
	}{
		"client_id is missing":                 {short("issuer {$ISSUER}"), 0, []string{"session default", "client_id is missing", "write 'client_id <id>'"}},
		"client_id of a named session":         {named("issuer {$ISSUER}", atAcme), 0, []string{"session acme", "client_id is missing", "write 'client_id <id>'"}},
		"client_id without a value":            {short("issuer {$ISSUER}\nclient_id"), 5, []string{"client_id", "exactly one value"}},
		"client_id twice":                      {short(good + "client_id other"), 6, []string{"client_id", "twice"}},
		"no authorization server":              {short("client_id device"), 0, []string{"session default", "write 'issuer <url>'", "token_endpoint"}},
		"half of the endpoints":                {short("client_id device\ntoken_endpoint https://login.example.com/token"), 0, []string{"session default", "device_authorization_endpoint"}},
		"no settings at all":                   {"http://:{$PORT} {\n\tbind 127.0.0.1\n\tdevice_flow {$API}\n}\n", 0, []string{`session "default"`, "issuer", "client_id"}},
		"named session without settings":       {"{\n\tdevice_flow acme\n}\n:{$PORT} {\n" + atAcme + "}\n", 0, []string{"session acme", "client_id is missing"}},
		"issuer without TLS":                   {short("issuer http://login.example.com\nclient_id device"), 0, []string{"session default", "issuer", "http://login.example.com", "https://", "insecure_http"}},
		"endpoint without TLS":                 {short(good + "token_endpoint http://login.example.com/token"), 0, []string{"session default", "token_endpoint", "https://", "insecure_http"}},
		"issuer that is a name":                {short("issuer login.example.com\nclient_id device"), 0, []string{"session default", "issuer", "login.example.com", "https://login.example.com"}},
		"unknown subdirective":                 {short(good + "frobnicate 7"), 6, []string{"frobnicate", "neither", "device_flow", "reverse_proxy"}},
		"misspelt subdirective":                {short("isuer {$ISSUER}\nclient_id device"), 4, []string{"isuer", "spelling"}},
		"unknown in the global option":         {named(good+"frobnicate 7", atAcme), 5, []string{"frobnicate", "session acme"}},
		"proxy setting in the global option":   {named(good+"status_path /login", atAcme), 5, []string{"status_path", "directive of a site"}},
		"status_path is the root":              {short(good + "status_path /"), 6, []string{"status_path", "/.device-flow"}},
		"status_path without slash":            {short(good + "status_path login"), 6, []string{"status_path", "leading slash", "/.device-flow"}},
		"status_path with a wildcard":          {short(good + "status_path /login/*"), 6, []string{"status_path", "/.device-flow"}},
		"status_path twice":                    {short(good + "status_path /one\nstatus_path /two"), 7, []string{"status_path", "twice"}},
		"status_path twice, first the default": {short(good + "status_path /.device-flow\nstatus_path /two"), 7, []string{"status_path", "twice"}},
		"status_path twice, first off":         {short(good + "status_path off\nstatus_path /two"), 7, []string{"status_path", "twice"}},
		"wait that is no duration":             {short(good + "wait a moment"), 6, []string{"wait"}},
		"wait below zero":                      {short(good + "wait -3s"), 6, []string{"wait", "30s"}},
		"login policy":                         {short(good + "login sometimes"), 0, []string{"session default", "sometimes", "on_demand", "eager"}},
		"client_auth":                          {short(good + "client_auth magic"), 0, []string{"session default", "magic", "none", "post", "basic"}},
		"client_auth without a secret":         {short(good + "client_auth basic"), 0, []string{"session default", "client_secret {file."}},
		"secret file is missing":               {short(good + "client_secret {file.{$HOME}/missing}"), 0, []string{"session default", "client_secret", "/missing", "exists"}},
		"secret file is empty":                 {short(good + "client_secret {file.{$HOME}/empty}"), 0, []string{"session default", "client_secret", "empty"}},
		"secret variable is missing":           {short(good + "client_secret {env.NO_SUCH_SECRET}"), 0, []string{"session default", "client_secret", "NO_SUCH_SECRET"}},
		"param of the flow itself":             {short(good + "param grant_type password"), 0, []string{"session default", "grant_type"}},
		"param without a value":                {short(good + "param hd"), 6, []string{"param <name> <value>"}},
		"issuer beside a session":              {named(good, "device_flow {$API} {\nsession acme\nissuer {$ISSUER}\n}"), 12, []string{"issuer", "session acme", "global options"}},
		"unknown session":                      {named(good, "device_flow {$API} {\nsession other\n}"), 0, []string{`"other"`, "device_flow other {", "global options"}},
		"unknown session of the transport":     {named(good, "reverse_proxy {$API} {\ntransport device_flow other\n}"), 0, []string{`"other"`, "device_flow other {", "global options"}},
		"two sessions of one name":             {"{\n\tdevice_flow acme {\n" + good + "\t}\n\tdevice_flow acme {\n" + good + "\t}\n}\n:{$PORT} {\n}\n", 6, []string{"acme", "twice", "another name"}},
		"two names for a session":              {"{\n\tdevice_flow acme inc {\n" + good + "\t}\n}\n:{$PORT} {\n}\n", 2, []string{"inc", "device_flow acme {"}},
		"session name with a slash":            {strings.ReplaceAll(named(good, atAcme), "acme", "a/b"), 0, []string{"a/b", "letters"}},
		"proxy settings without an upstream":   {"http://:{$PORT} {\n\tdevice_flow {\n" + good + "header_up X-Own 1\n\t}\n}\n", 5, []string{"header_up", "upstream", "device_flow https://"}},
		"another transport":                    {"http://:{$PORT} {\n\tdevice_flow http://127.0.0.1:9 {\n" + good + "transport fastcgi\n\t}\n}\n", 2, []string{"transport fastcgi", "transport http"}},
		"a value with a block":                 {short("issuer {$ISSUER} {\nnested\n}\nclient_id device"), 5, []string{"block"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t, tc.config, "https://login.example.com", "https://api.example.com")
			c.writeFile(t, "empty", "\n")
			out, err := c.run(t, "validate", "--config", c.file, "--adapter", "caddyfile")
			if err == nil {
				t.Fatalf("caddy validate accepts\n%s\n%s", tc.config, out)
			}
			// The last line it prints.
			var last struct {
				Level   string `json:"level"`
				Message string `json:"msg"`
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Level != "error" {
				t.Fatalf("caddy validate does not end with an error (%v):\n%s", err, out)
			}
			message := last.Message
			if want := fmt.Sprintf("Caddyfile:%d", tc.line); tc.line > 0 && !strings.Contains(message, want) {
				t.Errorf("not at %s: %s", want, message)
			}
			for _, want := range tc.want {
				if !strings.Contains(message, want) {
					t.Errorf("no %q in: %s", want, message)
				}
			}
		})
	}
}
