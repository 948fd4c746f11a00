# A few words, each a line. CI runs the same words.
PY := .venv/bin/python
CMAKE := $(PY) -m cmake
CONFIGURE = $(CMAKE) -S native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja -DKVSTORE_XXHASH_DIR=$(CURDIR)/build/xxhash
FUZZ_SECONDS ?= 60
SEEDS ?= 500
GRAFANA_TYPES := 'grafana-foundation-sdk==1769699379!11.6.0'
.DEFAULT_GOAL := help
.PHONY: help setup native native-built stubs proto check test test-s3 test-dashboards test-rdma setup-rdma setup-engines test-engines test-upstream demo demo-vllm bench bench-peers bench-engines sanitize fuzz chaos wheel clean

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup:           ## venv, dependencies, system packages where that is allowed, native build
	@sh deploy/dev/setup.sh
	@$(MAKE) --no-print-directory native

setup-rdma: setup  ## rdma-core, pyverbs of the same release linked into .venv, perftest; names them where it may not install
	@sh deploy/dev/setup.sh rdma

native:          ## both extension modules into the source tree (incremental)
	@mkdir -p build && flock build/.native.lock $(MAKE) --no-print-directory native-built

native-built:
	@[ -e build/dev/build.ninja ] || echo "native: building both extension modules (the first time: some two minutes on two cores)"
	@$(CONFIGURE) -B build/dev -DPython_EXECUTABLE=$(CURDIR)/$(PY) >build/dev-configure.log 2>&1 || (cat build/dev-configure.log; exit 1)
	@$(CMAKE) --build build/dev -j2 >build/dev-build.log 2>&1 || (cat build/dev-build.log; exit 1)
	@for p in kvstore transfer; do for f in build/dev/$$p/_native*.so; do cmp -s $$f $$p/$$(basename $$f) || install -m 755 $$f $$p/; done; done

stubs: native    ## regenerate the type stubs of the native modules
	@for p in kvstore transfer; do $(PY) -m nanobind.stubgen -q -m $$p._native -o $$p/_native.pyi; done

proto:           ## regenerate kvstore/wire from proto/
	@$(PY) proto/generate.py

check: setup     ## format, lint, types, import contracts
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

test: setup      ## everything but the heavy suites; under 15 minutes on 2 cores
	@sh deploy/dev/setup.sh torch routers etcd
	@$(PY) -m tests.run --seeds $(SEEDS)

test-s3: setup   ## the object tier against a real S3 server (Ceph), which is installed where that is allowed
	@for p in radosgw ceph-mon ceph-osd; do command -v $$p >/dev/null || missing="$$missing $$p"; done; \
	  [ -z "$$missing" ] || apt-get install -y -q --no-install-recommends $$missing >build/test-s3-apt.log 2>&1 \
	  || echo "== tests/s3 is SKIPPED: cannot install$$missing (apt-get install radosgw ceph-mon ceph-osd as root)"
	$(PY) -m pytest -q -rs tests/s3

test-dashboards: setup  ## a real Prometheus scrapes a node: every query of the dashboard, rules, the hit rate; Grafana's types
	@$(PY) -c 'import grafana_foundation_sdk' 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check --no-deps $(GRAFANA_TYPES) \
	  || echo "== tests/dashboards/test_grafana.py is SKIPPED: cannot install $(GRAFANA_TYPES)"
	@command -v prometheus >/dev/null || echo "== tests/dashboards is SKIPPED: no prometheus (apt-get install prometheus; Debian starts it as a service)"
	$(PY) -m pytest -q -rs tests/dashboards

test-rdma: setup  ## RDMA verbs for real, in a QEMU machine with soft-RoCE; the first time it downloads a 70 MB kernel package
	@sh deploy/dev/setup.sh rdma rdma-vm
	@$(PY) -m tests.rdma.run

setup-engines: setup  ## real vLLM (two releases) and SGLang, each in a venv of its own under build/engines; says sizes first
	@$(PY) -m tests.engines.venvs

test-engines: setup-engines  ## adapters in real engines on tiny models; PART=tests/engines/ci.txt for what CI runs of it
	$(PY) -m pytest -q -rs -o faulthandler_timeout=500 $(if $(PART),--part $(PART)) tests/engines

test-upstream: setup-engines  ## vLLM's own connector tests against our connector (a part of test-engines); prints the table
	@$(PY) -m tests.engines.upstream

demo: setup      ## a prefill and a decode process of a real transformer share KV through a node, then across a cluster
	@sh deploy/dev/setup.sh torch
	$(PY) -m engine_adapters.transformers.demo

demo-vllm: setup  ## a prefill and a decode server of vLLM (set up first: 850 MB to download), the store between, the proxy in front
	@$(PY) -m tests.engines.venvs vllm
	$(PY) -m engine_adapters.pd.demo

bench: setup     ## all benchmarks beside the machine's limits, into bench/results/
	@sh deploy/dev/setup.sh bench
	$(PY) -m bench

bench-peers: setup  ## the same with the peers that can be installed here, in a venv of their own
	@sh deploy/dev/setup.sh bench
	$(PY) -m bench --peers

bench-engines: setup-engines  ## real vLLM engines on our store and on others', side by side; says the sizes of others' packages first
	$(PY) -m bench.engines

sanitize: setup  ## native tests under address+undefined and thread sanitizers
	@for s in address,undefined thread; do d=build/sanitize-$${s%%,*}; \
	  $(CONFIGURE) -B $$d -DKVSTORE_PYTHON=OFF -DKVSTORE_NATIVE_TESTS=ON -DKVSTORE_SANITIZE=$$s >$$d.log 2>&1 || { cat $$d.log; exit 1; }; \
	  $(CMAKE) --build $$d -j2 >>$$d.log 2>&1 || { cat $$d.log; exit 1; }; \
	  echo "== $$s"; (cd $$d && $(CURDIR)/.venv/bin/ctest --output-on-failure -j2) || exit 1; done

fuzz: setup      ## both doors and every parser, FUZZ_SECONDS each, corpus kept
	@sh deploy/dev/setup.sh clang
	@$(PY) -m tests.integration.grpc_fuzz --seconds $(FUZZ_SECONDS)
	@$(PY) -m tests.fuzz --seconds $(FUZZ_SECONDS)

chaos: setup     ## five nodes in network namespaces, CHAOS_SECONDS (600) of kills, stops and cut links from CHAOS_SEED; every byte compared
	@sh deploy/dev/setup.sh etcd
	@$(PY) -m tests.cluster_rig.chaos

wheel: setup     ## a wheel in dist/, and its installed weight
	$(PY) -m pip wheel -q --no-deps --no-build-isolation -w dist .
	@$(PY) -m tests.weight dist

clean:           ## all that was built here
	rm -rf build dist .setup .mypy_cache .ruff_cache .pytest_cache .hypothesis kvstore/_native*.so transfer/_native*.so
