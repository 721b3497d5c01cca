// Command caddy-slim is a Caddy for small devices with device_flow and the modules that this job needs, and no others:
// docs/slim.md lists them. `./xcaddy.sh --slim` builds it.
//
// What else Caddy links is bound to these: its Caddyfile needs its PKI, its requests the CEL of `expression` matchers.
package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/deviceflow/caddy-deviceflow/cmd/caddy-slim/headroom"

	// Each has its reason in docs/slim.md.
	_ "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/caddyevents"
	_ "github.com/caddyserver/caddy/v2/modules/caddyevents/eventsconfig"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/logging"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/requestbody"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
	_ "github.com/caddyserver/caddy/v2/modules/caddypki"
	_ "github.com/caddyserver/caddy/v2/modules/caddytls"
	_ "github.com/caddyserver/caddy/v2/modules/caddytls/standardstek"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	_ "github.com/caddyserver/caddy/v2/modules/metrics"
	_ "github.com/deviceflow/caddy-deviceflow"
)

// settled is when the start is over, and what it has left behind goes back to the system.
const settled = 2 * time.Second

func main() {
	takeCores()
	time.AfterFunc(settled, func() {
		headroom.Release()
		debug.FreeOSMemory()
	})
	caddycmd.Main()
}

// takeCores takes those that GOMAXPROCS grants. Without it, the one core of the start is enough: it leaves the others to
// the device's own work, and to hand work from core to core is up to a third of what a request costs. A CPU limit of the
// container comes after this: Caddy takes as many cores as it allows.
func takeCores() {
	if os.Getenv("GOMAXPROCS") != "" {
		runtime.GOMAXPROCS(headroom.Cores)
	}
}
