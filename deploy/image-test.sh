#!/bin/sh
# Builds the image of the Dockerfile by buildah, without a container engine, and
# tries it: who it runs as, its health check, a login that outlives a container.
#
#   sudo deploy/image-test.sh [folder]
#
# It needs root, Linux, Go, and Debian's packages buildah and busybox-static. What
# it makes is in the folder, so that a second run is quick; without one it is gone
# at the end. Where the registry of the base images cannot be reached, or with
# STAND_IN=1, they are made from this machine: busybox in place of Alpine, and this
# machine's Go on it. That tries the Dockerfile just as well, but not Alpine.
set -eu

repo=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ -n "${1-}" ]; then
	mkdir -p -- "$1"
	folder=$(CDPATH='' cd -- "$1" && pwd)
else
	folder=$(mktemp -d)
	trap 'rm -rf -- "$folder"' EXIT
fi
# In a store of its own, so that nobody's images are touched. vfs needs nothing of
# the kernel. The cache mounts of the build are in TMPDIR.
export TMPDIR="$folder/tmp"
mkdir -p "$TMPDIR"
buildah="buildah --root $folder/store --runroot $folder/run --storage-driver vfs"
image=caddy-device-flow:test

# root_of_busybox makes a folder that can stand for Alpine.
root_of_busybox() {
	mkdir -p "$1/bin" "$1/etc/ssl/certs" "$1/tmp" "$1/root" "$1/usr/bin" "$1/usr/local" "$1/proc" "$1/sys" "$1/dev"
	for applet in $(busybox --list); do ln -sf busybox "$1/bin/$applet"; done
	cp --remove-destination /bin/busybox "$1/bin/busybox" # it lists itself, too
	# Debian's busybox lacks these two; the Dockerfile calls them in this one way.
	# shellcheck disable=SC2016 # for the scripts to expand, not for us
	{
		rm -f "$1/bin/addgroup" "$1/bin/adduser"
		printf '#!/bin/sh\n[ "$*" = "-S -g $3 $4" ] && echo "$4:x:$3:" >>/etc/group\n' >"$1/bin/addgroup"
		printf '#!/bin/sh\n[ "$*" = "-S -D -H -u $5 -G $7 -h $9 ${10}" ] && echo "${10}:x:$5:$5::$9:/sbin/nologin" >>/etc/passwd\n' >"$1/bin/adduser"
	}
	chmod 0755 "$1/bin/addgroup" "$1/bin/adduser"
	echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
	echo 'root:x:0:' >"$1/etc/group"
	cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
}

path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# stand_in makes the base image $1 of busybox, and of Go if it is one of Go.
stand_in() {
	[ -d "$folder/base" ] || root_of_busybox "$folder/base"
	container=$($buildah from scratch)
	$buildah copy -q "$container" "$folder/base" / >/dev/null
	case $1 in
	golang:*)
		$buildah copy -q "$container" "$(go env GOROOT)" /usr/local/go >/dev/null
		$buildah config --env "PATH=/usr/local/go/bin:$path" --env GOPATH=/go --env GOTOOLCHAIN=local "$container"
		;;
	*) $buildah config --env "PATH=$path" "$container" ;;
	esac
	$buildah commit -q --rm "$container" "docker.io/library/$1" >/dev/null
	echo "image-test.sh: $1 is a stand-in made of this machine's busybox" >&2
}

sed -n 's/^FROM \(--platform=[^ ]* \)\{0,1\}\([^ ]*\).*/\2/p' "$repo/Dockerfile" | while read -r base; do
	case $base in *:*) ;; *) continue ;; esac # a stage before it
	$buildah inspect --type image "docker.io/library/$base" >/dev/null 2>&1 && continue
	if [ -z "${STAND_IN-}" ] && $buildah pull -q "docker.io/library/$base" >/dev/null 2>&1; then continue; fi
	stand_in "$base"
done

# --format docker: the other format, buildah's default, has no HEALTHCHECK.
$buildah bud --isolation chroot --format docker --pull-never --layers=false -t "$image" "$repo"
$buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' | grep -F "$image"

cd "$repo"
DEVICEFLOW_BUILDAH=$buildah DEVICEFLOW_IMAGE=$image go test -tags image -count=1 -v -run '^TestImage' ./e2e
