# A thin layer over CMake and Ninja; `make help` lists the targets.

PREFIX ?= /usr/local
DESTDIR ?=
FUZZ_SECONDS ?= 60
CTEST = ctest --output-on-failure --no-label-summary -j2

# ThreadSanitizer's fixed address ranges clash with some kernels' address randomisation.
NO_ASLR = $(shell setarch -R true 2>/dev/null && echo setarch -R)

.PHONY: all help setup demo test test-gpu install format format-check lint asan tsan fuzz clean

all: build/release/build.ninja ## build the optimised program and libraries (the default)
	cmake --build --preset release

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

build/%/build.ninja:
	cmake --preset $*

setup: ## install the packages that a build needs, where they are missing
	@scripts/setup.sh

demo: setup build/release/build.ninja ## set up, build, make a sparse model of models/tales and tell a story
	cmake --build --preset release --target pdvm
	@scripts/demo.sh

test: setup ## set up, build and run every test that needs no GPU
	@$(MAKE) --no-print-directory all
	$(CTEST) --test-dir build/release -LE gpu --no-tests=error

test-gpu: setup ## run the tests that need a GPU (skipped, saying so, where there is none)
	@$(MAKE) --no-print-directory all
	$(CTEST) --test-dir build/release -L gpu -j1 --no-tests=error

install: all ## install to PREFIX (/usr/local), below DESTDIR if set
	cmake -DCMAKE_INSTALL_PREFIX="$(PREFIX)" build/release >/dev/null
	DESTDIR="$(DESTDIR)" cmake --install build/release
	@if [ -z "$(DESTDIR)" ] && [ "$$(id -u)" = 0 ] && command -v ldconfig >/dev/null; then ldconfig; fi

format: ## format all C sources in place
	@scripts/format.sh

format-check: ## fail if a C source is not formatted
	@scripts/format.sh --check

lint: ## static analysis: clang-tidy, cppcheck, shellcheck
	cmake --preset clang >/dev/null
	@scripts/lint.sh

asan: build/asan/build.ninja ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake --build --preset asan
	$(CTEST) --test-dir build/asan -LE gpu --no-tests=error

tsan: build/tsan/build.ninja ## the tests labelled threads under ThreadSanitizer
	cmake --build --preset tsan
	$(NO_ASLR) $(CTEST) --test-dir build/tsan -L threads

fuzz: build/fuzz/build.ninja ## fuzz every target for FUZZ_SECONDS (60)
	cmake --build --preset fuzz
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz.sh

clean: ## remove the build directories
	rm -rf build
