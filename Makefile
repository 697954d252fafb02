# make alone lists the targets. Each one installs what it lacks (testenv/setup.sh says what and why) and can be run on a
# fresh Debian 12.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
# A toolchain that setup.sh fetched comes first. Server programs are not in everybody's PATH.
export PATH := $(CURDIR)/build/tools/bin:$(PATH):/usr/local/go/bin:/usr/sbin:/sbin

version = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
gobuild = go build -trimpath -buildvcs=false -ldflags '-X main.version=$(version)'

.PHONY: help build demo test soak check bench generate clean programs ready-build ready-demo ready-bench

help:
	@echo 'make TARGET, where TARGET is'
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

build: ready-build programs ## bin/holdfast and bin/holdfast-plugin-*

programs:
	@[ -e bin/holdfast ] || echo 'build: the first time takes a minute or two'
	@mkdir -p bin
	$(gobuild) -o bin/holdfast ./cmd/holdfast
	@for plugin in $$(go list -f '{{if eq .Name "main"}}{{.Dir}}{{end}}' ./plugins/...); do \
		$(gobuild) -o bin/holdfast-plugin-$$(basename $$plugin) $$plugin; done

demo: ready-demo programs ## a real machine is backed up, destroyed, restored and booted (KEEP=1 leaves it all running)
	@$(gobuild) -o build/demo ./testenv/demo
	@KEEP=$(KEEP) exec build/demo

ready-build ready-demo ready-bench: ready-%:
	@testenv/setup.sh $*

test: ## every suite, with the minutes that each took (SUITE="unit libvirt" runs some of them)
	@testenv/setup.sh test
	@.ci/test $(SUITE)

soak: ## what grows with time: kills, model tests, fuzzing, for as long as SOAK says (SOAK=2h)
	@testenv/setup.sh test
	@.ci/soak $(SOAK)

check: ## format, vet, linters, generated code, licences, shell scripts, the build without cgo
	@testenv/setup.sh lint
	@.ci/check

bench: ready-bench ## Holdfast beside restic, kopia and borg: time, CPU, memory, bytes (BENCH=large, OPS=full, PEERS=…, REPEAT=1, GIB=4)
	@go build -o build/bench ./testenv/bench
	@exec build/bench $(if $(BENCH),-parts $(BENCH)) $(if $(OPS),-ops $(OPS)) $(if $(PEERS),-peers $(PEERS)) \
		$(if $(REPEAT),-repeat $(REPEAT)) $(if $(GIB),-gib $(GIB))

generate: ## generated code and the API document, from their sources
	@testenv/setup.sh lint
	go generate ./...

clean: ## removes what make built here; caches outside the tree stay
	rm -rf bin build
