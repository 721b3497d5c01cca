package caddymodule

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// Each of 1000 devices has its own token; none ever gets the answer to another's.
func TestNoDeviceGetsTheTokenOfAnother(t *testing.T) {
	const devices, bound = 1000, 200
	x := newRig(t, flowtest.Config{AutoApprove: true})
	owner := sync.Map{} // token → device
	x.as.ScriptAlways(flowtest.API, flowtest.Response{Func: func(w http.ResponseWriter, r *http.Request) {
		tokens, device := r.Header["Authorization"], r.Header.Get("X-Device-Id")
		first, _ := owner.LoadOrStore(strings.Join(tokens, ","), device)
		if len(tokens) != 1 || first != device {
			t.Errorf("device %s calls with the token of %v", device, first)
		}
		_, _ = w.Write([]byte(device))
	}})
	x.load(x.config(t.Name(), "", "a", keyedProxyOf(bound)))
	calls := func(name string) bool {
		a := x.device(name)
		if a.status == http.StatusOK && a.body != name {
			t.Errorf("device %s gets the answer to %s", name, a.body)
		}
		return a.status == http.StatusOK
	}
	var wg sync.WaitGroup
	const callers = 50
	for w := range callers {
		wg.Go(func() {
			for i := w; i < devices; i += callers {
				name := fmt.Sprint("device", i)
				for !calls(name) { // until it is logged in
					if s := x.ofKey(name); s != nil && s.Status().State == flow.StatePending {
						await(t, s.Session, flow.StateAuthorized)
					}
				}
			}
		})
	}
	wg.Wait()
	served := 0
	var mu sync.Mutex
	for w := range 8 {
		wg.Go(func() {
			for i := range devices / 4 {
				ok := calls(fmt.Sprint("device", (i*7+w*131)%devices))
				mu.Lock()
				if ok {
					served++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	n := 0
	owner.Range(func(any, any) bool { n++; return true })
	t.Logf("%d devices, %d tokens, %d of %d mixed calls served, %d sessions in memory", devices, n, served, devices*2, len(runningSessions()))
	if n != devices || served != devices*2 {
		t.Errorf("%d tokens, %d of %d calls served", n, served, devices*2)
	}
	if n := x.as.Count(flowtest.Device); n != devices {
		t.Errorf("%d codes were asked for", n)
	}
}
