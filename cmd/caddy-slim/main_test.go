package main

import (
	"encoding/base64"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/deviceflow/caddy-deviceflow/cmd/caddy-slim/headroom"
)

const tags = "nobadger,nomysql,nopgx" // as xcaddy.sh has them

// A module that comes or goes is a decision: testdata/modules.txt and docs/slim.md tell of it.
func TestModulesAreThoseThatWereChosen(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "modules.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want, got := strings.Fields(string(b)), caddy.Modules()
	for _, id := range got {
		if !slices.Contains(want, id) {
			t.Errorf("%s has come", id)
		}
	}
	for _, id := range want {
		if !slices.Contains(got, id) {
			t.Errorf("%s has gone", id)
		}
	}
}

// What makes the full build large and slow to start must not come back with somebody's import.
func TestNothingHeavyIsLinked(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-tags", tags, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 100 {
		t.Fatalf("only %d packages are listed", len(packages))
	}
	const standard = "github.com/caddyserver/caddy/v2/modules/"
	for _, heavy := range []string{
		"github.com/alecthomas/chroma", // 12 ms of a start by itself
		"github.com/yuin/goldmark",
		"github.com/dgraph-io/badger",
		"github.com/go-sql-driver/mysql",
		"github.com/jackc/pgx",
		"github.com/go-chi/chi", // the ACME server's
		"github.com/google/certificate-transparency-go",
		"github.com/chromedp",
		standard + "standard",
		standard + "caddyhttp/standard",
		standard + "caddyhttp/encode",
		standard + "caddyhttp/fileserver",
		standard + "caddyhttp/templates",
		standard + "caddyhttp/tracing",
		standard + "caddyhttp/reverseproxy/fastcgi",
		standard + "caddyhttp/reverseproxy/forwardauth",
		standard + "caddypki/acmeserver",
		standard + "caddytls/distributedstek",
	} {
		for _, p := range packages {
			if p == heavy || strings.HasPrefix(p, heavy+"/") {
				t.Errorf("%s is linked", p)
			}
		}
	}
}

// docs/slim.md gives each import its reason.
func TestThePageListsTheImports(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "main.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	page := read(t, "docs/slim.md")
	var imported []string
	for _, i := range f.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := strings.CutPrefix(path, "github.com/caddyserver/caddy/v2/"); ok && i.Name != nil && i.Name.Name == "_" {
			imported = append(imported, p)
		}
	}
	var listed []string
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:modules|caddyconfig)/[a-z/]+)` \\|").FindAllStringSubmatch(page, -1) {
		listed = append(listed, row[1])
	}
	slices.Sort(imported)
	slices.Sort(listed)
	if !slices.Equal(imported, listed) {
		t.Errorf("docs/slim.md lists\n%v\nand main.go imports\n%v", listed, imported)
	}
}

// Whoever has a small device copies the same Caddyfiles as everybody.
func TestTheExamplesAreUnderstood(t *testing.T) {
	for _, name := range []string{"DEVICE_FLOW_API", "DEVICE_FLOW_AUDIENCE", "DEVICE_FLOW_ISSUER"} {
		t.Setenv(name, "https://api.example.com")
	}
	t.Setenv("DEVICE_FLOW_CLIENT_ID", "device")
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	secrets := t.TempDir() // as systemd hands them over
	t.Setenv("CREDENTIALS_DIRECTORY", secrets)
	for _, name := range []string{"client-secret", "encryption-key"} {
		key := base64.StdEncoding.EncodeToString(make([]byte, 32))
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	deployed, err := filepath.Glob(filepath.FromSlash("../../deploy/*/Caddyfile"))
	if err != nil || len(deployed) == 0 {
		t.Fatalf("no Caddyfiles in deploy: %v", err)
	}
	understood(t, "Caddyfile.example", read(t, "Caddyfile.example"))
	for _, file := range deployed {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		understood(t, file, string(b))
	}
	blocks := regexp.MustCompile("(?ms)^```caddyfile\n(.*?)^```$").FindAllStringSubmatch(read(t, "README.md"), -1)
	if len(blocks) == 0 {
		t.Error("README.md has no Caddyfile")
	}
	for _, b := range blocks {
		understood(t, "README.md", b[1])
	}
}

// understood reports whether a configuration can be read and set up, without being started.
func understood(t *testing.T, name, caddyfile string) {
	t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": name})
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &cfg); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if err := caddy.Validate(&cfg); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOneCoreIsEnoughUnlessSomebodySaysOtherwise(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer func(n int) { headroom.Cores = n }(headroom.Cores)
	headroom.Cores = 3 // as Go has it of GOMAXPROCS=3
	t.Setenv("GOMAXPROCS", "")
	if takeCores(); runtime.GOMAXPROCS(0) != 1 {
		t.Errorf("it takes %d", runtime.GOMAXPROCS(0))
	}
	t.Setenv("GOMAXPROCS", "3")
	if takeCores(); runtime.GOMAXPROCS(0) != 3 {
		t.Errorf("with GOMAXPROCS=3 it takes %d", runtime.GOMAXPROCS(0))
	}
}
