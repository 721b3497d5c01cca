package flow

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Provider names a well-known authorization server with what tells one tenant of
// it from another, as in {"auth0", ["acme.eu.auth0.com"]}. It is a convenience:
// where a server's metadata is complete, Config.Issuer does.
type Provider struct {
	Name string
	Args []string
}

// preset is what one authorization server needs to be told about. A word in
// braces stands for an argument.
type preset struct {
	// args names the arguments: <required> and [optional]. A domain, host or url
	// is a server, as a name or as a URL; anything else is one segment of a path.
	args     string
	defaults map[string]string // of optional arguments

	issuer string
	// issuerIf is what the arguments must look like for the metadata to name this
	// very issuer; without a match there is no discovery.
	issuerIf *regexp.Regexp
	// device, token and userinfo are there where discovery does not name them.
	device, token, userinfo string
	userinfoAt              map[string]string // instead of userinfo, by its value

	secret   bool   // a client needs one
	scope    string // a login needs one; an example
	identify bool   // userinfo without the openid scope
	pkce     bool   // its device endpoint knows the challenge
}

// presets by name. Each difference stands in ../docs/providers/ with its reason.
var presets = map[string]preset{
	"auth0": {args: "<domain>", issuer: "{domain}"},
	"github": {
		args: "[host]", defaults: map[string]string{"host": "github.com"},
		device: "{host}/login/device/code", token: "{host}/login/oauth/access_token",
		userinfo: "{host}/api/v3/user", identify: true,
		userinfoAt: map[string]string{"https://github.com/api/v3/user": "https://api.github.com/user"},
	},
	"gitlab": {
		args: "[host]", defaults: map[string]string{"host": "gitlab.com"},
		issuer: "{host}", device: "{host}/oauth/authorize_device",
	},
	"google":   {issuer: "https://accounts.google.com", secret: true},
	"keycloak": {args: "<url> <realm>", issuer: "{url}/realms/{realm}", pkce: true},
	"microsoft": {
		args: "<tenant>",
		// The metadata of a tenant by name, or of "common", names another issuer:
		// that of the tenant's number, or "{tenantid}" as it stands here.
		issuer:   "https://login.microsoftonline.com/{tenant}/v2.0",
		issuerIf: regexp.MustCompile(`/[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}/`),
		device:   "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/devicecode",
		token:    "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token",
		scope:    "https://graph.microsoft.com/User.Read offline_access",
	},
	"okta": {
		args: "<domain> [server]", defaults: map[string]string{"server": "default"},
		issuer: "{domain}/oauth2/{server}",
		device: "{domain}/oauth2/{server}/v1/device/authorize", token: "{domain}/oauth2/{server}/v1/token",
	},
}

// Providers lists the presets with their arguments, as in "auth0 <domain>".
func Providers() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(presets)) {
		out = append(out, presets[name].usage(name))
	}
	return out
}

func (p preset) usage(name string) string { return strings.TrimSpace(name + " " + p.args) }

// Apply fills in what c leaves open and checks what the server is known to need.
// With an Issuer of its own, c takes its endpoints from there, and only the
// server's habits from p. A login that is described with a preset has the same
// [Config.Fingerprint] as the same one described without.
func (p Provider) Apply(c Config) (Config, error) {
	known, ok := presets[p.Name]
	if !ok {
		return c, fmt.Errorf("provider %q is not known: use one of %s, or 'issuer <url>' for any other server",
			clean(p.Name, 64), strings.Join(Providers(), ", "))
	}
	values, err := known.values(p.Args)
	if err != nil {
		return c, fmt.Errorf("provider %s: %w: write 'provider %s'", p.Name, err, known.usage(p.Name))
	}
	fill := strings.NewReplacer(values...).Replace
	if c.Issuer == "" {
		if issuer := fill(known.issuer); known.issuerIf == nil || known.issuerIf.MatchString(issuer) {
			c.Issuer = issuer
		}
		userinfo := fill(known.userinfo)
		c.Endpoints = c.Endpoints.or(Endpoints{
			DeviceAuthorization: fill(known.device), Token: fill(known.token),
			UserInfo: firstOf(known.userinfoAt[userinfo], userinfo),
		})
	}
	c.Identify = c.Identify || known.identify
	c.PKCE = c.PKCE || known.pkce
	if known.secret && c.Secret == nil {
		return c, fmt.Errorf("provider %s needs a client secret, for devices too: write 'client_secret {file./path/to/secret}'", p.Name)
	}
	if known.scope != "" && len(c.Scope) == 0 {
		return c, fmt.Errorf("provider %s needs a scope: write, for instance, 'scope %s'", p.Name, known.scope)
	}
	return c, nil
}

// values are the arguments by their names in braces, as [strings.NewReplacer]
// takes them.
func (p preset) values(args []string) ([]string, error) {
	var out []string
	for i, name := range strings.Fields(p.args) {
		name = strings.Trim(name, "<>[]")
		value := p.defaults[name]
		if i < len(args) {
			value = args[i]
		}
		if value == "" {
			return nil, fmt.Errorf("the %s is missing", name)
		}
		switch name {
		case "domain", "host", "url":
			base, err := serverURL(value)
			if err != nil {
				return nil, fmt.Errorf("the %s is %w", name, err) // unquoted: it may hold a password
			}
			value = base
		default:
			if value == "." || value == ".." || strings.ContainsAny(value, "/?#{}") {
				return nil, fmt.Errorf("%s %q is not one segment of a path", name, clean(value, 200))
			}
			value = url.PathEscape(value)
		}
		out = append(out, "{"+name+"}", value)
	}
	if most := len(strings.Fields(p.args)); len(args) > most {
		return nil, fmt.Errorf("%q is too much", clean(args[most], 64))
	}
	return out, nil
}

// serverURL makes a URL without a final slash of a server's name or URL.
func serverURL(s string) (string, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(s, "{}?#") {
		return "", errors.New("neither the name of a server nor its URL")
	}
	return strings.TrimRight(s, "/"), nil
}
