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
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".", "./flowtest").Output()
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
		case strings.HasPrefix(dep, "github.com/hashicorp/golang-lru/"):
		default:
			t.Errorf("flow depends on %s", dep)
		}
	}
}
