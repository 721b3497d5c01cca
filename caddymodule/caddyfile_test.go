package caddymodule

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// adapt turns a Caddyfile into indented JSON.
func adapt(t testing.TB, input string) (string, error) {
	t.Helper()
	result, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return "", err
	}
	for _, w := range warnings {
		if strings.Contains(w.Message, "caddy fmt") {
			continue // the golden test looks at that itself
		}
		t.Errorf("warning at line %d: %s: %s", w.Line, w.Directive, w.Message)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, result, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return out.String() + "\n", nil
}

// provisioned runs what `caddy validate` runs.
func provisioned(t testing.TB, config string) error {
	t.Helper()
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON([]byte(config), &cfg); err != nil {
		t.Fatal(err)
	}
	return caddy.Validate(&cfg)
}

// The golden files have the form of Caddy's own: Caddyfile, a line of hyphens, JSON. What they hold also passes
// `caddy fmt` and `caddy validate`.
func TestCaddyfileAdapts(t *testing.T) {
	files, err := filepath.Glob("testdata/caddyfile/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			golden, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, found := strings.Cut(string(golden), "----------\n")
			if !found {
				t.Fatal("no line of hyphens")
			}
			if formatted := string(caddyfile.Format([]byte(input))); formatted != input {
				t.Errorf("caddy fmt would make this of the input:\n%s", formatted)
			}
			got, err := adapt(t, input)
			if err != nil {
				t.Fatal(err)
			}
			if *updatePages {
				if err := os.WriteFile(file, []byte(input+"----------\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("adapted to\n%s\nwant\n%s", got, want)
			}
			if err := provisioned(t, got); err != nil {
				t.Errorf("caddy validate: %v", err)
			}
		})
	}
}

// site wraps the inside of one site block, which begins at line 2.
func site(inside string) string { return "http://:8080 {\n" + inside + "\n}\n" }

func TestCaddyfileErrorsSayWhereAndWhatToWrite(t *testing.T) {
	for _, c := range []struct{ name, input, want string }{
		{
			"misspelt setting", site("device_flow https://a.example.com {\n issuer https://l.example.com\n clientid x\n}"),
			"unrecognized subdirective clientid, at Caddyfile:4: it is neither a setting of device_flow nor one of reverse_proxy; check its spelling",
		},
		{
			"misspelt setting without an upstream", site("device_flow {\n clientid x\n}"),
			`"clientid" is no setting of device_flow; if it is meant for the proxy, name the upstream: device_flow https://api.example.com { … }, at Caddyfile:3`,
		},
		{
			"proxy setting without an upstream", site("device_flow {\n session a\n lb_policy first\n}"),
			`"lb_policy" is no setting of device_flow; if it is meant for the proxy, name the upstream: device_flow https://api.example.com { … }, at Caddyfile:4`,
		},
		{
			"misspelt setting in the global options", "{\n device_flow acme {\n  isuer https://l.example.com\n }\n}\n",
			`unrecognized setting "isuer" of session acme: check its spelling; settings of the proxy belong to the device_flow directive of a site, at Caddyfile:3`,
		},
		{
			"proxy setting in the global options", "{\n device_flow {\n  status_path /login\n }\n}\n",
			`unrecognized setting "status_path" of session default: check its spelling; settings of the proxy belong to the device_flow directive of a site, at Caddyfile:3`,
		},
		{
			"two names in the global options", "{\n device_flow acme corp {\n }\n}\n",
			`unexpected argument "corp": a session has one name; write 'device_flow acme { … }', at Caddyfile:2`,
		},
		{
			"the same name twice", "{\n device_flow acme {\n  client_id a\n }\n device_flow acme {\n  client_id b\n }\n}\n",
			"session acme is declared twice: give one of them another name, at Caddyfile:5",
		},
		{
			"no value", site("device_flow {\n issuer\n}"),
			"issuer takes exactly one value; put a value with spaces in quotes, at Caddyfile:3",
		},
		{
			"two values", site("device_flow {\n client_id a b\n}"),
			"client_id takes exactly one value; put a value with spaces in quotes, at Caddyfile:3",
		},
		{
			"an empty value", site("device_flow {\n client_id \"\"\n}"),
			"client_id takes exactly one value; put a value with spaces in quotes, at Caddyfile:3",
		},
		{
			"a key that is the same for all", site("device_flow {\n session_key device\n}"),
			`session_key "device" has no placeholder: write one that tells callers apart, as in {http.request.header.X-Device-Id}, at Caddyfile:3`,
		},
		{
			"a key that is a secret", site("device_flow {\n session_key {header.Authorization}\n}"),
			"session_key {http.request.header.Authorization}: the key is shown on the status page and in the log, so use a field that holds no secret, at Caddyfile:3",
		},
		{
			"a key twice", site("device_flow {\n session_key {a}\n session_key {b}\n}"),
			"session_key is given twice, at Caddyfile:4",
		},
		{
			"no sessions", site("device_flow {\n session_key {a}\n max_sessions 0\n}"),
			`max_sessions "0": use a number of at least 1, at Caddyfile:4`,
		},
		{
			"a bound twice", site("device_flow {\n session_key {a}\n max_sessions 1\n max_sessions 2\n}"),
			"max_sessions is given twice, at Caddyfile:5",
		},
		{
			"a bound without a key", site("device_flow {\n max_sessions 5\n}"),
			"max_sessions is for a session_key: add one, as in 'session_key {http.request.header.X-Device-Id}', at Caddyfile:2",
		},
		{
			"a setting twice", site("device_flow {\n client_id a\n client_id b\n}"),
			"client_id is given twice, at Caddyfile:4",
		},
		{
			"the page's place twice", site("device_flow {\n status_path off\n status_path /login\n}"),
			"status_path is given twice, at Caddyfile:4",
		},
		{
			"no scope", site("device_flow {\n scope\n}"),
			"scope takes at least one value, at Caddyfile:3",
		},
		{
			"an account without a value", site("device_flow {\n account email\n}"),
			"write 'account <claim> <value>', as in 'account email alice@example.com', with the value in quotes if it has spaces, at Caddyfile:3",
		},
		{
			"two accounts", site("device_flow {\n account email a@example.com\n account email b@example.com\n}"),
			"account is given twice: a session is the login of one account, at Caddyfile:4",
		},
		{
			"a param without a value", site("device_flow {\n param prompt\n}"),
			"write 'param <name> <value>', at Caddyfile:3",
		},
		{
			"no preset", site("device_flow {\n provider\n}"),
			"provider takes the name of a preset: auth0 <domain>, github [host], gitlab [host], google, keycloak <url> <realm>, microsoft <tenant>, okta <domain> [server], at Caddyfile:3",
		},
		{
			"two presets", site("device_flow {\n provider google\n provider github\n}"),
			"provider is given twice, at Caddyfile:4",
		},
		{
			"a header without a value", site("device_flow {\n header X-Key\n}"),
			"write 'header <name> <value>', with the value in quotes if it has spaces, at Caddyfile:3",
		},
		{
			"a header twice", site("device_flow {\n header X-Key a\n header X-Key b\n}"),
			"header X-Key is given twice, at Caddyfile:4",
		},
		{
			"an argument too many", site("device_flow {\n insecure_http yes\n}"),
			"insecure_http takes no argument, at Caddyfile:3",
		},
		{
			"a block that is none", site("device_flow {\n scope a {\n  b\n }\n}"),
			"there is no block here, at Caddyfile:4",
		},
		{
			"a storage that is none", site("device_flow {\n storage nowhere\n}"),
			"getting module named 'caddy.storage.nowhere': module not registered: caddy.storage.nowhere, at Caddyfile:3",
		},
		{
			"a transport that is none", site("device_flow {\n auth_transport nowhere\n}"),
			"getting module named 'http.reverse_proxy.transport.nowhere': module not registered: http.reverse_proxy.transport.nowhere, at Caddyfile:3",
		},
		{
			"two storages", site("device_flow {\n storage file_system a\n storage file_system b\n}"),
			"storage is given twice, at Caddyfile:4",
		},
		{
			"a storage without a name", site("device_flow {\n storage\n}"),
			"storage takes the name of a module, at Caddyfile:3",
		},
		{
			"an unknown storage setting", site("device_flow {\n storage file_system {\n  rot a\n }\n}"),
			"unrecognized parameter 'rot', at Caddyfile:4",
		},
		{
			"settings beside a session", site("device_flow {\n session acme\n scope a\n issuer https://l.example.com\n audience b\n}"),
			`"issuer" cannot stand beside 'session acme': it belongs to the declaration of that session in the global options, at Caddyfile:5`,
		},
		{
			"a cache of nothing", site("device_flow {\n cache_size 0\n}"),
			`cache_size "0": use a number of one or more, at Caddyfile:3`,
		},
		{
			"two audiences of a transport", site("reverse_proxy a.example.com {\n transport device_flow {\n  audience a\n  audience b\n }\n}"),
			"audience is given twice, at Caddyfile:5",
		},
		{
			"a relative page", site("device_flow {\n status_path login\n}"),
			`status_path "login": write it with a leading slash, as in /.device-flow, or 'off' for no page, at Caddyfile:3`,
		},
		{
			"the page in place of the API", site("device_flow {\n status_path /\n}"),
			"status_path / would hide the whole API: choose a path that the API does not have, as in /.device-flow, at Caddyfile:3",
		},
		{
			"a page with a wildcard", site("device_flow {\n status_path /login/*\n}"),
			`status_path "/login/*": use a plain path without a final slash, wildcards, placeholders, query or escapes, as in /.device-flow, at Caddyfile:3`,
		},
		{
			"a wait without a unit", site("device_flow {\n wait 30\n}"),
			`wait "30": use a duration such as 30s, at Caddyfile:3`,
		},
		{
			"no client", site("device_flow {\n allow_client\n}"),
			"allow_client takes at least one value, at Caddyfile:3",
		},
		{
			"a required header without a name", site("device_flow {\n require_header\n}"),
			"write 'require_header <name> [<value>]', with the value in quotes if it has spaces, at Caddyfile:3",
		},
		{
			"a required header with two values", site("device_flow {\n require_header X-Key a b\n}"),
			"write 'require_header <name> [<value>]', with the value in quotes if it has spaces, at Caddyfile:3",
		},
		{
			"a required header with an empty value", site("device_flow {\n require_header X-Key \"\"\n}"),
			"write 'require_header <name> [<value>]', with the value in quotes if it has spaces, at Caddyfile:3",
		},
		{
			"two required headers", site("device_flow {\n require_header X-Key a\n require_header X-Other\n}"),
			"require_header is given twice, at Caddyfile:4",
		},
		{
			"a negative wait", site("device_flow {\n wait -1s\n}"),
			`wait "-1s": use a duration such as 30s, at Caddyfile:3`,
		},
		{
			"a foreign transport", site("device_flow a.example.com {\n client_id a\n transport fastcgi\n}"),
			"transport fastcgi does not belong here: device_flow brings its own; write 'transport http { … }' to set its options, at Caddyfile:2",
		},
		{
			"our own transport once more", site("device_flow a.example.com {\n client_id a\n transport device_flow b\n}"),
			"transport device_flow does not belong here: device_flow brings its own; write 'transport http { … }' to set its options, at Caddyfile:2",
		},
		{
			"a proxy setting that is wrong", site("device_flow a.example.com {\n client_id a\n lb_retries many\n}"),
			`bad lb_retries number 'many': strconv.Atoi: parsing "many": invalid syntax, at Caddyfile:4`,
		},
		{
			"an upstream with a path", site("device_flow https://a.example.com/v1 {\n client_id a\n}"),
			"parsing upstream 'https://a.example.com/v1': for now, URLs for proxy upstreams only support scheme, host, and port components, at Caddyfile:2",
		},
		{
			"two sessions of one transport", site("reverse_proxy a.example.com {\n transport device_flow a b {\n  dial_timeout 1s\n }\n}"),
			`unexpected argument "b": write 'transport device_flow [<session>]', at Caddyfile:3`,
		},
		{
			"an unknown transport setting", site("reverse_proxy a.example.com {\n transport device_flow a {\n  dail_timeout 1s\n }\n}"),
			"unrecognized subdirective dail_timeout, at Caddyfile:4",
		},
		{
			"in an imported snippet", "(login) {\n client_id a b\n}\n" + site("device_flow {\n import login\n}"),
			"client_id takes exactly one value; put a value with spaces in quotes, at Caddyfile:2 import chain ['Caddyfile:6 (import login)']",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := adapt(t, c.input)
			if err == nil {
				t.Fatalf("no error; want %s", c.want)
			}
			_, got, _ := strings.Cut(err.Error(), "': ") // after "parsing caddyfile tokens for 'device_flow"
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestValidateNamesTheSessionAndWhatToWrite(t *testing.T) {
	const issuer = " issuer https://l.example.com\n client_id a\n"
	for _, c := range []struct{ name, input, want string }{
		{
			"no client_id", site("device_flow {\n issuer https://l.example.com\n}"),
			"session default: client_id is missing: write 'client_id <id>' with the id that the authorization server gave your application",
		},
		{
			"no server", "{\n device_flow acme {\n  client_id a\n }\n}\n",
			"session acme: no authorization server: write 'issuer <url>', or both 'device_authorization_endpoint <url>' and 'token_endpoint <url>'",
		},
		{
			"clear text", site("device_flow {\n client_id a\n issuer http://l.example.com\n}"),
			`session default: issuer: "http://l.example.com" would send codes and tokens in clear text: use https://, or set insecure_http if the network is trusted`,
		},
		{
			"no such secret file", site("device_flow {\n" + issuer + " client_secret {file.testdata/none}\n}"),
			"session default: client_secret {file.testdata/none} has no value: check that the file or variable exists, that Caddy may read it, and that it is not empty",
		},
		{
			"a secret that looks like a placeholder", site("device_flow {\n" + issuer + " client_secret s3cr{x}et\n}"),
			"session default: client_secret is written with a placeholder that has no value: check that the file or variable exists, that Caddy may read it, and that it is not empty",
		},
		{
			"no such variable", site("device_flow {\n issuer https://l.example.com\n client_id {env.DEVICE_FLOW_NO_SUCH}\n}"),
			"session default: client_id: evaluated placeholder {env.DEVICE_FLOW_NO_SUCH} is empty",
		},
		{
			"an unknown preset", site("device_flow {\n client_id a\n provider auth\n}"),
			`session default: provider "auth" is not known: use one of auth0 <domain>, github [host], gitlab [host], google, keycloak <url> <realm>, microsoft <tenant>, okta <domain> [server], or 'issuer <url>' for any other server`,
		},
		{
			"a preset without its argument", site("device_flow {\n client_id a\n provider keycloak https://sso.example.com\n}"),
			"session default: provider keycloak: the realm is missing: write 'provider keycloak <url> <realm>'",
		},
		{
			"a preset without its variable", site("device_flow {\n client_id a\n provider auth0 {env.DEVICE_FLOW_NO_SUCH}\n}"),
			"session default: provider: evaluated placeholder {env.DEVICE_FLOW_NO_SUCH} is empty",
		},
		{
			"google without a secret", site("device_flow {\n client_id a\n provider google\n}"),
			"session default: provider google needs a client secret, for devices too: write 'client_secret {file./path/to/secret}'",
		},
		{
			"microsoft without a scope", site("device_flow {\n client_id a\n provider microsoft common\n}"),
			"session default: provider microsoft needs a scope: write, for instance, 'scope https://graph.microsoft.com/User.Read offline_access'",
		},
		{
			"a preset in clear text", site("device_flow {\n client_id a\n provider keycloak http://sso.example.com things\n}"),
			`session default: issuer: "http://sso.example.com/realms/things" would send codes and tokens in clear text: use https://, or set insecure_http if the network is trusted`,
		},
		{
			"no such key file", site("device_flow {\n" + issuer + " client_key testdata/none.pem\n}"),
			"session default: client_key testdata/none.pem: no such file or directory: this has to be the name of a file: check that the file exists and that Caddy may read it",
		},
		{
			"a key in place of its file", site("device_flow {\n" + issuer + " client_key {file.testdata/caddyfile/client_key.pem}\n}"),
			"session default: client_key takes the name of a file, not what is in it: write 'client_key /run/secrets/client-key.pem'",
		},
		{
			"a JWT without a key", site("device_flow {\n" + issuer + " client_auth private_key_jwt\n}"),
			"session default: client_auth private_key_jwt needs a key: write 'client_key <file>' with a PEM or JWK file",
		},
		{
			"no certificate", site("device_flow {\n" + issuer + " client_auth tls\n}"),
			"session default: client_auth tls needs a certificate: write 'auth_transport http { tls_client_auth <certificate file> <key file> }'",
		},
		{
			"a transport without a certificate", site("device_flow {\n" + issuer + " client_auth tls\n auth_transport http {\n  tls\n }\n}"),
			"session default: client_auth tls needs a certificate: write 'auth_transport http { tls_client_auth <certificate file> <key file> }'",
		},
		{
			"a header without its file", site("device_flow {\n" + issuer + " header X-Key {file.testdata/none}\n}"),
			"session default: header X-Key {file.testdata/none} has no value: check that the file or variable exists, that Caddy may read it, and that it is not empty",
		},
		{
			"a header of ours", site("device_flow {\n" + issuer + " header content-type text/plain\n}"),
			"session default: header Content-Type: this field is set by the flow itself; remove the setting",
		},
		{
			"an unknown session", site("device_flow {\n session acme\n}"),
			`there is no session "acme": declare it in the global options, as in '{ device_flow acme { issuer … client_id … } }'`,
		},
		{
			"no session at all", site("reverse_proxy a.example.com {\n transport device_flow\n}"),
			`there is no session "default": declare it in the global options, as in '{ device_flow default { issuer … client_id … } }'`,
		},
		{
			"a session that needs itself", site("device_flow {\n" + issuer + " auth_transport device_flow\n}"),
			`session default: auth_transport: loading module 'device_flow': provision http.reverse_proxy.transport.device_flow: there is no session "default": declare it in the global options, as in '{ device_flow default { issuer … client_id … } }'`,
		},
		{
			"a login policy", site("device_flow {\n" + issuer + " login later\n}"),
			`session default: login "later" is not known: use on_demand or eager`,
		},
		{
			"two pages in one place", "{\n device_flow a {\n" + issuer + " }\n device_flow b {\n" + issuer + " }\n}\n" +
				site("device_flow /a/* {\n session a\n}\ndevice_flow /b/* {\n session b\n}"),
			"status_path /.device-flow is where the page of session a is already: give session b another status_path",
		},
		{
			"one login with two sets of settings", site("device_flow /a/* {\n" + issuer + "}\ndevice_flow /b/* {\n" + issuer + " login eager\n status_path /b/login\n}"),
			"session default-2 is the login of session default (same issuer, client, scope and audience) with other settings: " +
				"make the settings the same, or declare both in the global options, each under a name of its own",
		},
		{
			"a bad name", "{\n device_flow \"a b\" {\n" + issuer + " }\n}\n",
			`session a b: session name "a b": use letters, digits, dot, underscore and hyphen, at most 64, starting with a letter or digit`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := adapt(t, c.input)
			if err != nil {
				t.Fatal(err)
			}
			err = provisioned(t, config)
			if err == nil {
				t.Fatalf("no error; want %s", c.want)
			}
			if !strings.HasSuffix(err.Error(), ": "+c.want) {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
		})
	}
}

// Whatever stands in the directive is an error or a configuration, never a panic.
func FuzzCaddyfile(f *testing.F) {
	for _, seed := range []string{
		"https://a.example.com", "/api/* a:1 b:2 {\n to c\n}", "{\n issuer x\n client_id y\n}", "{\n}", "{", "@x a {\n @x path /\n}",
		"a \"b {\n}\" {\n transport http {\n tls\n }\n}", "a {\n param x <<E\n {\n E\n header_up a \"}\"\n}",
		"a {\n handle_response {\n device_flow b\n }\n}", "a {\n storage file_system {\n root /x\n }\n status_path off\n}",
		"unix//x {\n wait 1h\n auth_transport http {\n tls_timeout 1s\n }\n}", "{\n session a\n transport device_flow b c\n}",
	} {
		f.Add(seed)
	}
	adapter := caddyconfig.GetAdapter("caddyfile")
	f.Fuzz(func(t *testing.T, directive string) {
		if strings.Contains(directive, "import") || strings.Contains(directive, "{$") {
			return // reads files or variables
		}
		for _, input := range []string{
			"http://:1 {\n device_flow " + directive + "\n}\n",
			"http://:1 {\n reverse_proxy a {\n  transport device_flow " + directive + "\n }\n}\n",
			"{\n device_flow " + directive + "\n}\n",
		} {
			out, _, err := adapter.Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
			if err == nil && !json.Valid(out) {
				t.Errorf("no JSON:\n%s", out)
			}
		}
	})
}
