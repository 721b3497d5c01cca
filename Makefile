# The few commands that people need. CI runs .ci/run, which has lint, race and the
# builds of Caddy among others, and `vuln` and `image-test` beside it.

# Tools have versions, so that everybody sees the same findings. `go run` keeps
# them out of go.mod.
GOLANGCI := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK := go run golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: help test race e2e lint fix vuln build slim demo bench image image-test

help: ## what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

test: ## all tests that Go alone can run
	go test ./...

race: ## the same with the race detector
	go test -race ./...

e2e: ## all tests, those with Chromium and other servers too
	cd e2e/provider && npm ci --no-audit --no-fund --ignore-scripts
	DEVICEFLOW_E2E=1 go test ./...

lint: ## formatting, vet, golangci-lint
	go vet ./...
	cd e2e/zitadel && go vet ./...
	$(GOLANGCI) run ./...

fix: ## what gofumpt and the linters can mend by themselves
	$(GOLANGCI) run --fix ./...

vuln: ## known vulnerabilities in what is called; asks vuln.go.dev
	$(GOVULNCHECK) ./...

build: ## ./caddy with the modules, by xcaddy
	./xcaddy.sh

slim: ## ./caddy-slim, for small devices
	./xcaddy.sh --slim caddy-slim

bench: ## docs/performance.md anew: twenty minutes, on a quiet Linux
	go run ./bench/run

demo: ## everything in one process, without any account
	go run ./demo

image: ## the container image
	docker build -t caddy-device-flow .

image-test: ## builds the image without a container engine, and tries it (root, Linux)
	deploy/image-test.sh
