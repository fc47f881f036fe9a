# The house's commands. `make help` lists them; `make check` is the gate before
# every push and `make test` is what .ci/run calls.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
TOOL    := $(GO) tool -modfile=tools/go.mod
BUF     := tools/node_modules/.bin/buf
VERSION ?= $(shell sed -n 's/^\tVersion = "\(.*\)"/\1/p' internal/version/version.go)
COMMIT  := $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X teleport/internal/version.Version=$(VERSION) -X teleport/internal/version.Commit=$(COMMIT)
BINS    := teleport tctl tsh
FUZZTIME ?= 60s
TESTFLAGS ?= -timeout 15m

# The helper for PAM is C, and linked with libpam: it is left out where that cannot be.
PAM_CC      ?= gcc
PAM_CFLAGS  ?= -O2 -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2
PAM_LDFLAGS ?= -pie -s -Wl,-z,relro,-z,now

export CGO_ENABLED ?= 0

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | sort | while IFS=$$'\t' read -r name text; do printf '%-10s %s\n' "$$name" "$$text"; done

.PHONY: build
build: teleport-pam ## build teleport, tctl and tsh into build/ (static, stripped, version stamped), and teleport-pam if it can be
	@mkdir -p build
	$(GO) build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)' -o build/ $(addprefix ./cmd/,$(BINS))

.PHONY: teleport-pam
teleport-pam:
	@mkdir -p build
	@if ! echo '#include <security/pam_appl.h>' | $(PAM_CC) -E - >/dev/null 2>&1; then \
		echo "build/teleport-pam is left out: it needs $(PAM_CC) and security/pam_appl.h (libpam0g-dev, pam-devel)"; rm -f build/teleport-pam; \
	else \
		set -x; $(PAM_CC) $(PAM_CFLAGS) -Wall -Wextra -o build/teleport-pam.new cmd/teleport-pam/*.c $(PAM_LDFLAGS) -lpam && mv build/teleport-pam.new build/teleport-pam; \
	fi

.PHONY: demo
demo: build ## a real cluster on this machine: an agent joins and a shell command runs on it through the Proxy
	@$(GO) build -o build/.demo ./test/demo && build/.demo

.PHONY: test
test: test-deps build ## build, then every test (what CI runs)
	$(TOOL) gotestsum --format pkgname -- $(TESTFLAGS) ./...

# The real programs that tests are made with, or files of them, and the Debian package of each: OpenSSH, rsync, awscli and so on.
PEERS := ssh:openssh-client curl:curl git:git tmux:tmux socat:socat xauth:xauth Xvfb:xvfb xdpyinfo:x11-utils visudo:sudo sshfs:sshfs rclone:rclone ansible:ansible-core sshd:openssh-server rsync:rsync sshpass:sshpass etcd:etcd-server /usr/bin/aws:awscli ip:iproute2 openssl:openssl swtpm:swtpm swtpm_setup:swtpm-tools gcc:gcc /usr/include/stdio.h:libc6-dev /usr/include/security/pam_appl.h:libpam0g-dev /usr/lib/python3/dist-packages/pymongo:python3-pymongo \
	ssh-audit:ssh-audit pg_ctlcluster:postgresql psql:postgresql-client /usr/share/java/postgresql.jar:libpostgresql-jdbc-java javac:default-jdk-headless \
	mariadbd:mariadb-server mariadb:mariadb-client sysbench:sysbench redis-server:redis-server redis-cli:redis-tools nginx:nginx chromium:chromium chromedriver:chromium-driver

# The API server of the tests is built once per version, outside of the tree: test/kube says what for.
KUBE_VERSION   := $(shell sed -n 's/^require k8s.io.kubernetes \(v[^ ]*\).*/\1/p' test/kube/apiserver/go.mod)
KUBE_APISERVER := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/teleport-test/kube-apiserver-$(KUBE_VERSION)
KUBE_LDFLAGS   := -s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION) -X k8s.io/component-base/version.gitMajor=1 \
	-X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(KUBE_VERSION)))

.PHONY: kube-apiserver
kube-apiserver: $(KUBE_APISERVER) ## build the Kubernetes API server of the tests, if it is missing (some minutes, once)

$(KUBE_APISERVER):
	@echo "building the Kubernetes API server $(KUBE_VERSION) for the tests: some minutes, once"
	@mkdir -p $(@D)
	cd test/kube/apiserver && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(KUBE_LDFLAGS)' -o $@.tmp k8s.io/kubernetes/cmd/kube-apiserver
	@mv $@.tmp $@

# FerretDB, for the tests of MongoDB's protocol, likewise: from a copy, as a file that it is built with is not in the module.
FERRETDB_VERSION := $(shell sed -n 's/^require github.com.FerretDB.FerretDB \(v[^ ]*\).*/\1/p' test/ferretdb/go.mod)
FERRETDB         := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/teleport-test/ferretdb-$(FERRETDB_VERSION)

.PHONY: ferretdb
ferretdb: $(FERRETDB) ## build the FerretDB of the tests, if it is missing (some minutes, once)

$(FERRETDB):
	@echo "building FerretDB $(FERRETDB_VERSION) for the tests: some minutes, once"
	@mkdir -p $(@D)
	@src=$$(mktemp -d) && trap 'rm -rf "$$src"' EXIT; \
	dir=$$(cd test/ferretdb && $(GO) mod download -json github.com/FerretDB/FerretDB | sed -n 's/^\t"Dir": "\(.*\)",$$/\1/p'); \
	cp -r "$$dir/." "$$src" && chmod -R u+w "$$src" && echo $(FERRETDB_VERSION) > "$$src/build/version/version.txt"; \
	cd "$$src" && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@.tmp ./cmd/ferretdb
	@mv $@.tmp $@

.PHONY: test-deps
test-deps: kube-apiserver ferretdb ## install what the tests need, if it is missing
	@missing=(); \
	for peer in $(PEERS); do \
		command -v "$${peer%%:*}" >/dev/null || [[ -x "/usr/sbin/$${peer%%:*}" ]] || [[ $$peer == /* && -e "$${peer%%:*}" ]] || missing+=("$${peer##*:}"); \
	done; \
	if (( $${#missing[@]} == 0 )); then exit 0; fi; \
	echo "installing for the tests: $${missing[*]}"; \
	sudo=(); (( EUID == 0 )) || sudo=(sudo -n); \
	if ! command -v apt-get >/dev/null || \
		! { "$${sudo[@]}" apt-get update -qq && DEBIAN_FRONTEND=noninteractive "$${sudo[@]}" apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; }; then \
		echo "make test: the tests need these packages and they could not be installed: $${missing[*]}" >&2; \
		echo "make test: install them (as root: apt-get install $${missing[*]}) and run it again" >&2; \
		exit 1; \
	fi

.PHONY: lint
lint: ## golangci-lint with the rules of .golangci.yml
	$(TOOL) golangci-lint run ./...

.PHONY: fmt
fmt: ## format all Go code
	$(TOOL) gofumpt -w -modpath teleport $$(git ls-files --cached --others --exclude-standard '*.go' | grep -v '\.pb\.go$$')

.PHONY: fmt-check
fmt-check:
	@out="$$($(TOOL) gofumpt -l -modpath teleport $$(git ls-files --cached --others --exclude-standard '*.go' | grep -v '\.pb\.go$$'))"; \
	if [[ -n "$$out" ]]; then echo "not formatted, run make fmt:"; echo "$$out"; exit 1; fi

.PHONY: gen
gen: tools/node_modules ## generate the Go code of the protobuf contracts
	cd api && ../$(BUF) lint && ../$(BUF) generate

tools/node_modules: tools/package.json tools/package-lock.json
	cd tools && npm ci --no-audit --no-fund
	@touch $@

.PHONY: gen-check
gen-check: gen
	@if ! git diff --quiet -- api; then echo "generated code is not up to date, commit what make gen wrote:"; git diff --stat -- api; exit 1; fi

.PHONY: race
race: test-deps
	CGO_ENABLED=1 $(GO) test -race $(TESTFLAGS) ./internal/... ./cmd/... ./test/integration/...

.PHONY: check
check: fmt-check lint gen-check build race test ## the gate before every push: format, lint, generated code, build, race detector, every test
	@echo "check: all good (known vulnerabilities need a database from the network: make vuln)"

.PHONY: vuln
vuln: ## look for known vulnerabilities (downloads a database, so it needs the network)
	$(TOOL) govulncheck ./...

.PHONY: e2e
e2e: test-deps build ## only the end-to-end scripts, on the built binaries
	$(GO) test $(TESTFLAGS) -count=1 ./test/e2e/...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (60s)
	@for pkg in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$pkg/*_test.go); do \
			echo "fuzz $$pkg $$target"; \
			$(GO) test ./$$pkg -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x; \
		done; \
	done

.PHONY: bench
bench: test-deps build ## measure against OpenSSH, print ratios and write docs/bench.md
	$(GO) run ./test/bench

.PHONY: soak
soak: test-deps build ## load with services killed at random, until stopped or SOAKTIME has passed; before it 10,000 sessions that must leave nothing
	$(GO) test ./internal/service/ssh -run '^TestNothingLeaks$$' -count=1 -timeout 30m -sessions 10000
	$(GO) test ./test/soak/... -count=1 -timeout 0 -v -soak $(or $(SOAKTIME),10m)
