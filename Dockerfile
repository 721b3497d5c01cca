# A Caddy with device_flow in a small image that runs as a user without rights.
#
#   docker build -t caddy-device-flow .
#   docker run -v ./Caddyfile:/etc/caddy/Caddyfile:ro -v data:/data -p 127.0.0.1:8080:8080 caddy-device-flow
#
# Inside a container `bind 127.0.0.1` reaches nobody: leave it out of the
# Caddyfile and publish the port on the host's loopback, as above.

FROM --platform=$BUILDPLATFORM golang:1.26-alpine AS build
ARG TARGETOS TARGETARCH TARGETVARIANT
WORKDIR /src
COPY . .
# `go build ./cmd/caddy`, not xcaddy.sh: it takes exactly the versions and
# hashes of go.mod and go.sum, where xcaddy resolves them anew, and it compiles
# for another platform without running anything of it. The modules in the two
# are the same, and so are the flags. GOARM is for 32-bit ARM only.
RUN --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/cache \
    if [ "$TARGETARCH" = arm ]; then export GOARM="${TARGETVARIANT#v}"; fi; \
    CGO_ENABLED=0 GOCACHE=/cache GOOS="$TARGETOS" GOARCH="$TARGETARCH" \
    go build -trimpath -ldflags '-s -w' -tags nobadger,nomysql,nopgx -o /caddy ./cmd/caddy

FROM alpine:3.22
# The data folder holds refresh tokens: nobody else reads it. A named volume
# takes over this owner and mode; a host folder needs `chown 10001:10001`.
RUN addgroup -S -g 10001 caddy \
    && adduser -S -D -H -u 10001 -G caddy -h /data caddy \
    && mkdir -m 0700 /data /config \
    && chown caddy:caddy /data /config
COPY --from=build /caddy /usr/bin/caddy

# GOGC: less CPU for each request, more memory; docs/performance.md has both. Of
# GOMEMLIMIT there is none: Caddy itself takes 90 % of the container's limit, and
# a number here would go on beyond a smaller one.
ENV XDG_DATA_HOME=/data \
    XDG_CONFIG_HOME=/config \
    HOME=/data \
    GOGC=400 \
    HEALTHCHECK_URL=http://127.0.0.1:8080/.device-flow/healthz
VOLUME ["/data", "/config"]
EXPOSE 8080

# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /data

# Healthy means authorized or degraded: a container that waits for its login is
# not, so `depends_on: {condition: service_healthy}` holds back what needs it.
# -Y off: a proxy that is set for the authorization server is not for this.
# podman and buildah keep a health check only with --format docker.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 \
    CMD wget -q -Y off -O /dev/null "$HEALTHCHECK_URL" || exit 1

ENTRYPOINT ["/usr/bin/caddy"]
CMD ["run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
