#!/bin/sh
# Builds a Caddy with device_flow for each platform, with the versions and hashes
# of go.mod and go.sum, as the Dockerfile does, and writes their checksums.
#
#   deploy/release.sh <folder> [os/arch…]
#
# The same commit and the same Go give the same files.
set -eu

folder=${1:?the folder to write to}
shift
[ $# -gt 0 ] || set -- linux/amd64 linux/arm64 linux/arm/7 linux/arm/6 linux/386 linux/riscv64 \
	darwin/amd64 darwin/arm64 windows/amd64 windows/arm64 freebsd/amd64
mkdir -p -- "$folder"
folder=$(CDPATH='' cd -- "$folder" && pwd)
cd "$(dirname -- "$0")/.."

for platform in "$@"; do
	os=${platform%%/*}
	arch=${platform#*/}
	arm=
	case $arch in
	arm/*) arm=${arch#arm/} arch=arm ;;
	esac
	name=caddy-device-flow_${os}_$arch${arm:+v$arm}
	[ "$os" != windows ] || name=$name.exe
	echo "$name"
	CGO_ENABLED=0 GOOS=$os GOARCH=$arch GOARM=$arm GOFLAGS='' \
		go build -trimpath -ldflags '-s -w' -tags nobadger,nomysql,nopgx -o "$folder/$name" ./cmd/caddy
done
cd "$folder"
sha256sum caddy-device-flow_* >checksums.txt
