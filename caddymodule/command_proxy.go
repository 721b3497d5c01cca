package caddymodule

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
)

const proxyHelp = `
Runs a proxy that logs its callers' requests in, without any Caddyfile. It is the
same as this one, with the settings that the flags name:

  http://:8080 {
    bind 127.0.0.1 ::1
    device_flow <to> {
      issuer    <issuer>
      client_id <client-id>
    }
  }

It answers on loopback, unless --from names an IP address, or just a port, which
means all interfaces; callers outside of private networks are refused even then.

A client secret is never an argument, for every user of the machine can see those.
Give the file that holds it, or the name of an environment variable.

The login is kept in Caddy's storage and is there again after a restart. In a
terminal, a QR code of each pending login is shown; elsewhere, with --log-qr.
The admin API is off unless --admin says where; with it, the other commands of
'caddy device-flow' work.`

// proxySettings are the flags that are client settings of the Caddyfile.
var proxySettings = []struct{ flag, usage string }{
	{"issuer", "Issuer of the login server, where its endpoints are discovered"},
	{"device-authorization-endpoint", "Where codes are issued, for a server without discovery"},
	{"token-endpoint", "Where tokens are issued, for a server without discovery"},
	{"client-id", "Id of the client at the login server (required)"},
	{"client-auth", "How the client authenticates: none, post or basic"},
	{"audience", "API that the token is for, as Auth0 calls it"},
}

func proxyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proxy --to <url> --issuer <url> --client-id <id>",
		Short: "Runs an authenticating proxy without a Caddyfile",
		Long:  proxyHelp,
		Example: `  $ caddy device-flow proxy --from localhost:8080 --to https://api.example.com \
      --issuer https://acme.eu.auth0.com --client-id 3f2aKq \
      --scope "offline_access read:things" --audience https://api.example.com`,
		Args: cobra.NoArgs,
	}
	fl := cmd.Flags()
	fl.StringP("from", "f", "localhost:8080", "Address on which to receive calls, over HTTP")
	fl.StringSliceP("to", "t", nil, "URL of the API; may be repeated (required)")
	for _, s := range proxySettings {
		fl.String(s.flag, "", s.usage)
	}
	fl.String("client-secret-file", "", "File that holds the client's secret")
	fl.String("client-secret-env", "", "Environment variable that holds the client's secret")
	fl.StringArray("scope", nil, "Scopes to ask for, mostly with offline_access; may be repeated")
	fl.StringArray("resource", nil, "API that the token is for (RFC 8707); may be repeated")
	fl.StringArray("param", nil, "Extra parameter, as name=value; may be repeated")
	fl.String("account", "", "The only account that may log in, as claim=value")
	fl.Bool("eager", false, "Get a code at once, not with the first call")
	fl.Bool("log-qr", false, "Print the QR code of a pending login (default in a terminal)")
	fl.String("admin", "", "Where the admin API is to listen, as in localhost:2019 (default: nowhere)")
	fl.BoolP("debug", "v", false, "Log everything that Caddy can tell")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !fl.Changed("log-qr") && newTerminal(os.Stderr).screen {
			_ = fl.Set("log-qr", "true") // it exists
		}
		if err := runProxy(cmd); err != nil {
			cmd.SilenceErrors = true
			cmd.PrintErrln("Error: " + err.Error())
			return err
		}
		select {} // until a signal, which Caddy handles
	}
	return cmd
}

// runProxy makes Caddy serve what the flags say.
func runProxy(cmd *cobra.Command) error {
	cfg, url, err := proxyConfig(caddycmd.Flags{FlagSet: cmd.Flags()})
	if err != nil {
		return err
	}
	caddy.TrapSignals()
	if err := caddy.Run(cfg); err != nil {
		return err
	}
	to, _ := cmd.Flags().GetStringSlice("to")
	out := newTerminal(cmd.OutOrStdout())
	out.say("Send calls to   %s", url)
	out.say("They go on to   %s", strings.Join(to, ", "))
	out.say("Log in at       %s", url+defaultStatusPath)
	return nil
}

// proxyConfig makes a configuration of the flags, and names the URL to call.
func proxyConfig(fl caddycmd.Flags) (*caddy.Config, string, error) {
	listen, url, err := proxyListen(fl.String("from"))
	if err != nil {
		return nil, "", err
	}
	tokens, err := proxyDirective(fl)
	if err != nil {
		return nil, "", err
	}
	values, err := parseDirective(httpcaddyfile.Helper{Dispenser: caddyfile.NewDispenser(tokens), State: make(map[string]any)})
	if err != nil {
		return nil, "", err
	}
	server := &caddyhttp.Server{Listen: listen}
	for _, v := range values {
		if route, ok := v.Value.(caddyhttp.Route); ok {
			server.Routes = append(server.Routes, route)
		}
	}
	no := false
	cfg := &caddy.Config{
		Admin: &caddy.AdminConfig{
			Disabled: fl.String("admin") == "",
			Listen:   fl.String("admin"),
			Config:   &caddy.ConfigSettings{Persist: &no}, // `caddy run --resume` is to find what was there before
		},
		AppsRaw: caddy.ModuleMap{
			"http": caddyconfig.JSON(caddyhttp.App{Servers: map[string]*caddyhttp.Server{"srv0": server}}, nil),
		},
	}
	if fl.Bool("debug") {
		cfg.Logging = &caddy.Logging{
			Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{Level: zap.DebugLevel.CapitalString()}}},
		}
	}
	return cfg, url, nil
}

// proxyListen is where to listen for --from, and the URL for callers.
func proxyListen(from string) (listen []string, url string, err error) {
	rest, _ := strings.CutPrefix(from, "http://")
	host, port, err := net.SplitHostPort(strings.TrimSuffix(rest, "/"))
	if err != nil {
		host, port = strings.Trim(strings.TrimSuffix(rest, "/"), "[]"), "80"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return nil, "", fmt.Errorf("--from %s: the port has to be a number, as in localhost:8080", from)
	}
	url = "http://" + net.JoinHostPort(host, port)
	switch {
	case from == "":
	case host == "":
		return []string{":" + port}, "http://localhost:" + port, nil
	case strings.EqualFold(host, "localhost"):
		listen = []string{net.JoinHostPort("127.0.0.1", port)}
		// Some containers have no IPv6, and callers may try it first where there is one.
		if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
			_ = l.Close()
			listen = append(listen, net.JoinHostPort("::1", port))
		}
		return listen, url, nil
	case net.ParseIP(host) != nil:
		return []string{net.JoinHostPort(host, port)}, url, nil
	}
	return nil, "", fmt.Errorf("--from %s: use localhost:%s, an IP address with a port, or :%s for all interfaces; for host names and HTTPS, write a Caddyfile", from, port, port)
}

// proxyDirective is the device_flow directive that the flags stand for.
func proxyDirective(fl caddycmd.Flags) (caddyfile.Segment, error) {
	texts := func(name string) []string { s, _ := fl.GetStringArray(name); return s }
	var lines [][]string
	add := func(line ...string) { lines = append(lines, line) }

	head := []string{"device_flow"}
	to, _ := fl.GetStringSlice("to")
	for _, u := range to {
		if !strings.HasPrefix(u, "https://") && !strings.HasPrefix(u, "http://") {
			return nil, fmt.Errorf("--to %s: write the whole URL, as in https://api.example.com", u)
		}
		head = append(head, u)
	}
	if len(to) == 0 {
		return nil, errors.New("--to is missing: the URL of the API, as in https://api.example.com")
	}
	for _, s := range proxySettings {
		if v := fl.String(s.flag); v != "" {
			add(strings.ReplaceAll(s.flag, "-", "_"), v)
		} else if s.flag == "client-id" {
			return nil, errors.New("--client-id is missing: the id of the client at the login server")
		}
	}
	secret, err := proxySecret(fl.String("client-secret-file"), fl.String("client-secret-env"))
	if err != nil {
		return nil, err
	}
	if secret != "" {
		add("client_secret", secret)
	}
	for _, s := range texts("scope") {
		if scopes := strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' }); len(scopes) > 0 {
			add(append([]string{"scope"}, scopes...)...)
		}
	}
	for _, r := range texts("resource") {
		add("resource", r)
	}
	for _, p := range texts("param") {
		name, value, ok := strings.Cut(p, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--param %s: write name=value", p)
		}
		add("param", name, value)
	}
	if a := fl.String("account"); a != "" {
		claim, value, ok := strings.Cut(a, "=")
		if !ok || claim == "" || value == "" {
			return nil, fmt.Errorf("--account %s: write claim=value, as in email=alice@example.com", a)
		}
		add("account", claim, value)
	}
	if fl.Bool("eager") {
		add("login", "eager")
	}
	if fl.Bool("log-qr") {
		add("log_qr")
	}
	return segment(head, lines)
}

// proxySecret is the placeholder for a secret that is kept elsewhere.
func proxySecret(file, env string) (string, error) {
	switch {
	case file != "" && env != "":
		return "", errors.New("--client-secret-file and --client-secret-env exclude each other")
	case file != "":
		path, err := filepath.Abs(file)
		if err != nil || strings.ContainsAny(path, "{}") {
			return "", fmt.Errorf("--client-secret-file %s: use a path without braces", file)
		}
		return "{file." + path + "}", nil
	case env != "":
		if os.Getenv(env) == "" {
			// Not what was given: it may be the secret itself.
			return "", errors.New("--client-secret-env takes the name of an environment variable, and there is none of that name with a value")
		}
		return "{env." + env + "}", nil
	}
	return "", nil
}

// segment is a directive with a block, as the Caddyfile's own parser reads it.
func segment(head []string, lines [][]string) (caddyfile.Segment, error) {
	var tokens caddyfile.Segment
	all := append(append([][]string{append(head, "{")}, lines...), []string{"}"})
	for i, line := range all {
		for j, text := range line {
			brace := text == "{" || text == "}"
			if strings.ContainsAny(text, "\r\n") || brace && i > 0 && i < len(all)-1 && j > 0 {
				return nil, fmt.Errorf("%s cannot be %q", strings.ReplaceAll(line[0], "_", " "), text)
			}
			tokens = append(tokens, caddyfile.Token{File: "flags", Line: i + 1, Text: text})
		}
	}
	return tokens, nil
}
