#!/bin/sh
# Builds a Caddy with this checkout's modules by xcaddy.
#
#   ./xcaddy.sh [output] [xcaddy build flags…]      default output: ./caddy
#   ./xcaddy.sh --slim [output]                     the small one: docs/slim.md
#
# It builds the Caddy version that go.mod names (CADDY_VERSION overrides it, but
# not for the slim one) and fails, leaving an older output alone, when the result
# does not list all five modules. XCADDY_*, GOPROXY, GOOS, GOARCH and the like
# reach xcaddy and Go as they are; further arguments too, for instance --with
# another/plugin.
set -eu

xcaddy=github.com/caddyserver/xcaddy/cmd/xcaddy@v0.4.5
module=github.com/deviceflow/caddy-deviceflow

repo=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
slim=
if [ "${1-}" = --slim ]; then
	slim=yes && shift
fi
output=caddy
case ${1--} in
-*) ;;
*) output=$1 && shift ;;
esac
case $output in
/*) ;;
*) output=$PWD/$output ;;
esac
if [ "$slim" ] && [ $# -gt 0 ]; then
	echo "xcaddy.sh: --slim takes nothing but the file to write; a build with plug-ins is a full one" >&2
	exit 1
fi
if [ -d "$output" ]; then
	echo "xcaddy.sh: $output is a folder; name the file to write" >&2
	exit 1
fi

# The new binary is built and checked beside its final place (not in $temp, so
# that the last step is a rename and keeps what XCADDY_SETCAP gave the file).
temp=$(mktemp -d)
new=$output.new
trap 'rm -rf -- "$temp" "$new"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# A go.work around the checkout is for another build.
GOWORK=off
export GOWORK

host_os=$(go env GOHOSTOS)
host_arch=$(go env GOHOSTARCH)
if [ "$slim" ]; then
	caddy_version=$(cd "$repo" && go list -m -f '{{.Version}}' github.com/caddyserver/caddy/v2)
	# Its modules are chosen by cmd/caddy-slim, so there is nothing for xcaddy to
	# do; the flags are those that xcaddy and Caddy's own releases are built with.
	(cd "$repo" && CGO_ENABLED=${CGO_ENABLED:-0} go build -trimpath -ldflags '-s -w' \
		-tags nobadger,nomysql,nopgx -o "$new" ./cmd/caddy-slim)
else
	caddy_version=${CADDY_VERSION:-$(cd "$repo" && go list -m -f '{{.Version}}' github.com/caddyserver/caddy/v2)}

	# xcaddy itself runs here, whatever GOOS and GOARCH say of its result.
	GOOS=$host_os GOARCH=$host_arch GOARM='' GOFLAGS='' GOBIN=$temp go install "$xcaddy"

	# The version before the = matters. Without one, xcaddy's `go get MODULE` asks
	# the module proxy for the latest version although the path is replaced, and
	# only a 404 or 410 lets Go go on to the replacement: a proxy that answers 403
	# to what it does not carry ends the build. An exact version is looked up in
	# the replacements whatever the proxy said, so this needs no setting of GOPROXY
	# or GOPRIVATE and does the same where the path is published.
	"$temp/xcaddy" build "$caddy_version" --with "$module@v0.0.0=$repo" --output "$new" "$@"
fi

if [ "$(go env GOOS)/$(go env GOARCH)" = "$host_os/$host_arch" ]; then
	list=$("$new" list-modules)
	for id in device_flow http.handlers.device_flow http.handlers.device_flow_status \
		http.reverse_proxy.transport.device_flow admin.api.device_flow; do
		if ! printf '%s\n' "$list" | grep -Fqx -- "$id"; then
			echo "xcaddy.sh: the Caddy just built does not list the module $id" >&2
			exit 1
		fi
	done
else
	# A Caddy for another system cannot be asked: see at least what went in.
	go version -m "$new" | grep -Fq -- "$module" || {
		echo "xcaddy.sh: the Caddy just built does not contain $module" >&2
		exit 1
	}
fi

mv -f -- "$new" "$output"
echo "xcaddy.sh: $output is ${slim:+slim }Caddy $caddy_version with device_flow"
