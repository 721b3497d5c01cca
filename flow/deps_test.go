package flow_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestPackageStandsAlone holds the one direction of the dependencies: the engine
// could be published without Caddy. It may import golang-lru, nothing else.
func TestPackageStandsAlone(t *testing.T) {
	requireDeps(t, []string{".", "./flowtest"}, "github.com/hashicorp/golang-lru/")
}

// TestTokenSourceAddsTypesOnly: who wants no golang.org/x/oauth2 does without this
// one package, and it takes nothing else along.
func TestTokenSourceAddsTypesOnly(t *testing.T) {
	requireDeps(t, []string{"./tokensource"}, "github.com/hashicorp/golang-lru/", "golang.org/x/oauth2")
}

// requireDeps allows packages the standard library, this module's flow, and what
// begins as one of others.
func requireDeps(t *testing.T, packages []string, others ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"list", "-deps"}, packages...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "net/http") {
		t.Fatalf("go list says nothing useful: %q", deps)
	}
	for _, dep := range deps {
		first, _, _ := strings.Cut(dep, "/")
		switch {
		case !strings.Contains(first, "."): // the standard library
		case strings.HasPrefix(dep, "github.com/deviceflow/caddy-deviceflow/flow"):
		case slices.ContainsFunc(others, func(p string) bool { return strings.HasPrefix(dep, p) }):
		default:
			t.Errorf("%v depends on %s", packages, dep)
		}
	}
}
