//go:build image

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The tests of the image are behind a build tag since they need root, buildah and an image that has been built:
// deploy/image-test.sh brings all three.

// imageUser is whom the Dockerfile names.
const imageUser = 10001

// buildah runs a command of buildah's and returns what it prints.
func buildah(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := buildahCommand(t, args...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func buildahCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	base := strings.Fields(os.Getenv("DEVICEFLOW_BUILDAH"))
	if len(base) == 0 || os.Getenv("DEVICEFLOW_IMAGE") == "" {
		t.Fatal("run deploy/image-test.sh: it builds the image that this test is about")
	}
	return exec.Command(base[0], append(base[1:], args...)...)
}

// container is one made of the image, in the network of this machine.
type container struct {
	*caddy
	id string
}

// newContainer makes a container without starting anything in it.
func newContainer(t *testing.T) string {
	t.Helper()
	id, err := buildah(t, "from", "--pull-never", os.Getenv("DEVICEFLOW_IMAGE"))
	if err != nil {
		t.Fatalf("buildah from: %v\n%s", err, id)
	}
	t.Cleanup(func() {
		if out, err := buildah(t, "rm", id); err != nil && !strings.Contains(out, "not known") {
			t.Errorf("buildah rm: %v\n%s", err, out)
		}
	})
	return id
}

// inside is a command in a container, as the user of the image.
func (c *container) inside(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	run := []string{"run", "--isolation", "chroot", "-v", c.file + ":/etc/caddy/Caddyfile:ro", "-v", filepath.Join(c.home, "volume") + ":/data"}
	for _, e := range c.env {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "PORT") || name == "ISSUER" || name == "API" || name == "CADDY_ADMIN" {
			run = append(run, "--env", e)
		}
	}
	run = append(run, "--env", "HEALTHCHECK_URL="+c.url+statusPath+"/healthz")
	return buildahCommand(t, append(append(run, c.id, "--"), args...)...)
}

// imageConfig is what the tests read of the image's configuration.
type imageConfig struct {
	Docker struct {
		Config struct {
			User        string   `json:"User"`
			Entrypoint  []string `json:"Entrypoint"`
			Cmd         []string `json:"Cmd"`
			Healthcheck struct {
				Test []string `json:"Test"`
			} `json:"Healthcheck"`
			Volumes map[string]struct{} `json:"Volumes"`
		} `json:"config"`
	} `json:"Docker"`
}

func inspectImage(t *testing.T) (i imageConfig) {
	t.Helper()
	out, err := buildah(t, "inspect", "--type", "image", os.Getenv("DEVICEFLOW_IMAGE"))
	if err == nil {
		err = json.Unmarshal([]byte(out), &i)
	}
	if err != nil {
		t.Fatalf("buildah inspect: %v\n%s", err, out)
	}
	return i
}

// startContainer runs what the image runs.
func (c *container) startContainer(t *testing.T, i imageConfig) {
	t.Helper()
	c.id = newContainer(t)
	// buildah mounts an anonymous volume of the image and ours at the same place, in any order.
	if out, err := buildah(t, "config", "--volume", "/data-", c.id); err != nil {
		t.Fatalf("buildah config: %v\n%s", err, out)
	}
	c.process = startProcess(t, c.inside(t, append(i.Docker.Config.Entrypoint, i.Docker.Config.Cmd...)...))
	eventually(t, patience, "Caddy serves in the container", func() bool {
		if !c.running() {
			t.Fatalf("the container ended: %v", c.err)
		}
		return listening("127.0.0.1:" + c.port)
	})
}

// stopContainer ends Caddy and removes the container; the volume stays.
func (c *container) stopContainer(t *testing.T) {
	t.Helper()
	if res := c.ask(t, http.MethodPost, "/stop"); res.status != http.StatusOK {
		t.Fatalf("POST /stop: %d %s", res.status, res.body)
	}
	select {
	case <-c.ended:
	case <-time.After(15 * time.Second):
		t.Fatal("the container has not ended")
	}
	if out, err := buildah(t, "rm", c.id); err != nil {
		t.Fatalf("buildah rm: %v\n%s", err, out)
	}
}

// TestImageRunsAsNobodyInParticular looks at what is in the image.
func TestImageRunsAsNobodyInParticular(t *testing.T) {
	i := inspectImage(t)
	if want := fmt.Sprintf("%d:%[1]d", imageUser); i.Docker.Config.User != want {
		t.Errorf("the user is %q, want %q: a number, for orchestrators to see that it is not root", i.Docker.Config.User, want)
	}
	for _, folder := range []string{"/data", "/config"} {
		if _, there := i.Docker.Config.Volumes[folder]; !there {
			t.Errorf("%s is no volume", folder)
		}
	}
	id := newContainer(t)
	run := func(args ...string) string {
		t.Helper()
		out, err := buildah(t, append([]string{"run", "--isolation", "chroot", id, "--"}, args...)...)
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return out
	}
	if got := run("id", "-u"); got != fmt.Sprint(imageUser) {
		t.Errorf("commands run as %s", got)
	}
	if got, want := run("stat", "-c", "%u:%g %a", "/data", "/config"), "10001:10001 700\n10001:10001 700"; got != want {
		t.Errorf("the folders of the volumes are %q, want %q", got, want)
	}
	if got := run("stat", "-c", "%u:%g %a", "/usr/bin/caddy"); got != "0:0 755" {
		t.Errorf("the program is %q, want it to be root's and not setuid", got)
	}
	modules := run("/usr/bin/caddy", "list-modules")
	for _, id := range []string{
		"device_flow", "http.handlers.device_flow", "http.handlers.device_flow_status",
		"http.reverse_proxy.transport.device_flow", "admin.api.device_flow",
	} {
		if !strings.Contains("\n"+modules+"\n", "\n"+id+"\n") {
			t.Errorf("the image lacks the module %s", id)
		}
	}
}

// TestImageIsHealthyWhileCallsAreServed goes through a login, a new container on the same volume, and a logout, with
// the image's own health check and commands.
func TestImageIsHealthyWhileCallsAreServed(t *testing.T) {
	i := inspectImage(t)
	if test := i.Docker.Config.Healthcheck.Test; len(test) != 2 || test[0] != "CMD-SHELL" {
		t.Fatalf("the health check is %q", test)
	}
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := &container{caddy: newCaddy(t, site("device", "offline_access"), as.Issuer(), a.URL)}
	volume := filepath.Join(c.home, "volume")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(volume, imageUser, imageUser); err != nil { // as the Dockerfile says of a host folder
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{c.file: 0o644, c.home: 0o755, filepath.Dir(c.home): 0o755} { // the container's user reads it
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	healthy := func() bool {
		t.Helper()
		return c.inside(t, "/bin/sh", "-c", i.Docker.Config.Healthcheck.Test[1]).Run() == nil
	}

	c.startContainer(t, i)
	if healthy() {
		t.Error("it is healthy although nobody is logged in")
	}
	code := c.callForCode(t).UserCode
	if healthy() {
		t.Error("it is healthy although the code waits for approval")
	}
	if err := as.Approve(code); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	if !healthy() {
		t.Error("it is not healthy although calls are served")
	}
	c.stopContainer(t)
	if c.running() {
		t.Error("it still runs")
	}

	stored, err := filepath.Glob(filepath.Join(volume, "caddy", "device_flow", "*.json"))
	if err != nil || len(stored) != 1 {
		t.Fatalf("the volume holds %d records, %v:\n%s", len(stored), err, listing(t, volume))
	}
	out, err := exec.Command("stat", "-c", "%u:%g %a", stored[0], filepath.Dir(stored[0])).Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != "10001:10001 600\n10001:10001 700" {
		t.Errorf("the record and its folder are %q, %v", got, err)
	}

	c.startContainer(t, i)
	c.login(t)
	if !healthy() {
		t.Error("a new container on the same volume is not healthy")
	}
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
	if out, err := c.inside(t, "/usr/bin/caddy", "device-flow", "logout").CombinedOutput(); err != nil {
		t.Errorf("caddy device-flow logout in the container: %v\n%s", err, out)
	}
	if healthy() {
		t.Error("it is healthy after the logout")
	}
	c.stopContainer(t)
}
