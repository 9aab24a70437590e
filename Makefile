# CPython 3.13.5 with a tracemalloc for each interpreter: builds, tests and
# exports the patch series.  'make help' lists everything; each target is one
# script in scripts/, and variables given to make reach it by the environment.

.DEFAULT_GOAL := demo
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
# CPython's own make is told its number of jobs by JOBS, not by this one.
unexport MAKEFLAGS MFLAGS MAKELEVEL

.PHONY: demo tree build test oracle model bench traces packages debian stock patch export check-series proof proof-list proof-summary clean help

demo:
	@STEPS=5 scripts/tree.sh
	@STEPS=5 STEP=2 scripts/build.sh
	@STEPS=5 STEP=4 scripts/demo.sh

tree:
	@STEPS=2 scripts/tree.sh

build:
	@STEPS=4 scripts/tree.sh
	@STEPS=4 STEP=2 scripts/build.sh

test: export CONFIG := $(or $(CONFIG),debug)
test:
	@STEPS=4 scripts/tree.sh
	@STEPS=4 STEP=2 scripts/build.sh
	@STEP=4 scripts/test.sh

oracle: export CONFIG := $(or $(CONFIG),debug)
oracle:
	@STEPS=5 scripts/tree.sh
	@STEPS=5 STEP=2 scripts/build.sh
	@STEPS=5 STEP=4 scripts/oracle.sh

model:
	@STEPS=2 scripts/tree.sh
	@build/cpython/Tools/tracemalloc/check_model.sh $(if $(QUICK),quick)

bench:
	@scripts/bench.sh

traces:
	@scripts/bench.sh traces

packages:
	@scripts/packages.sh

debian:
	@scripts/debian.sh

stock:
	@STEPS=3 scripts/build.sh stock

patch:
	@STEPS=3 scripts/tree.sh
	@STEPS=3 STEP=2 scripts/patch.sh

export:
	@scripts/export.sh

check-series:
	@scripts/check-series.sh

proof:
	@scripts/proof.sh

proof-list:
	@scripts/proof.sh list

proof-summary:
	@scripts/proof.sh summary

clean:
	@scripts/clean.sh

help:
	@echo "make               source, patches, configure, build, demo (the default)"
	@echo "make tree          build/cpython: a git tree of CPython 3.13.5 with the series"
	@echo "make build         build it in build/CONFIG; after an edit only what changed"
	@echo "make test          build (CONFIG=debug) and run the tests"
	@echo "make oracle        compare with the oracle's traces (MINUTES=1, SEED=, CONFIG=debug)"
	@echo "make model         check the model of the counters with SPIN (QUICK=1: 2 min)"
	@echo "make bench         compare with stock: build/bench/table.md, *.svg (QUICK=1: 2 min)"
	@echo "make traces        do stock and patched leave the same traces behind?"
	@echo "make packages      Debian's numpy, lxml, gevent... with stock and patched: build/packages/"
	@echo "                   table.md (root only; makes a user space of Debian 13, 1.5 GB)"
	@echo "make debian        Debian 13's package python3.13 with the series: build/debian/*.deb"
	@echo "                   (root only; most of an hour)"
	@echo "make stock         build unpatched CPython in build/stock-CONFIG"
	@echo "make patch         build/tracemalloc-3.13.5.patch, for the release tarball and patch -p1"
	@echo "make export        commits of build/cpython -> patches/ and the folders"
	@echo "make check-series  patches apply, folders are equal (EACH=1: each one builds)"
	@echo "make proof         about a day of tests; goes on where it was interrupted"
	@echo "                   (ONLY='GROUP or STEP...', AGAIN=1 repeats what failed,"
	@echo "                   KEPT=1 takes the results that are committed for done)"
	@echo "make proof-list    its groups and steps; proof-summary writes PROOF.md"
	@echo "make clean         remove build/ but the downloads; refuses to lose work"
	@echo
	@echo "CONFIG=  release (default), debug, freethreaded, freethreaded-debug, asan, tsan,"
	@echo "         optimized (PGO and LTO, 20 min)"
	@echo "CPYTHON= a checkout at v3.13.5, or Python-3.13.5.tar.xz, to use as the source;"
	@echo "         for check-series any later version (says which patches apply)"
	@echo "VERSION=3.13.15  that release instead of 3.13.5, in build/3.13.15"
	@echo "JOBS=    jobs of a build and of the tests (default: number of processors)"
	@echo "TESTS=, OWN_TESTS=  names of tests instead of the standard lists"
	@echo "TRACE=N  for test: CPython's files are run with -X tracemalloc=N"
	@echo "RACES=own           for test CONFIG=tsan: data races of CPython's are no failures"
	@echo "EACH_CONFIGS=       configurations for check-series EACH=1 (default: release)"
	@echo "FREETHREADED=1      for bench: the free-threaded builds, too; ONLY= groups alone"
	@echo "KEEP_TREE=1         for clean: leave build/cpython alone"
