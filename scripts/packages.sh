#!/usr/bin/env bash
# packages.sh: do packages that were compiled for stock work with the series?
#
# Builds stock and the series (CONFIG=release or optimized) in a user space of
# Debian 13 (system.sh, as root), and has scripts/packages/run.py let both run
# Debian's packages: programs that use them, the traces that these leave behind,
# and tests of greenlet's and numpy's.
#
# Leaves build/packages/table.md and results.json; the last line is 'N passed,
# N failed, N skipped', where skipped is also what fails with stock as well.
# Exit status 1: something failed; 2: it is not possible on this machine.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/system.sh
. "$ROOT/scripts/system.sh"
# shellcheck source=scripts/stock.sh
. "$ROOT/scripts/stock.sh"
# shellcheck source=scripts/options.sh
. "$ROOT/scripts/options.sh"

OUT=$BUILD/packages
WORK=$OUT/work
# What CPython is built with; the packages, and what their tests need.
INSTALL="gcc libc6-dev make pkgconf zlib1g-dev libssl-dev libffi-dev libsqlite3-dev libbz2-dev liblzma-dev
    python3-numpy python3-scipy python3-pandas python3-lxml python3-greenlet python3-gevent python3-sqlalchemy
    python3-django python3-aiohttp python3-uvloop python3-pydantic python3-cryptography
    python3-orjson python3-psutil python3-pytest python3-hypothesis python3-objgraph"

CONFIG=${CONFIG:-release}
check_config "$CONFIG"
case $CONFIG in
release | optimized) ;;
*) die "CONFIG=$CONFIG cannot load Debian's extension modules; use release or optimized." ;;
esac

# here COMMAND...: run it in the user space.  The sources are in /src, not to be
# written to; build/packages/work is /work.
here() {
    inside "$WORK:/work" "$STOCK:/src/stock:ro" "$TREE:/src/patch:ro" "$ROOT/scripts/packages:/src/packages:ro" -- "$@"
}

# build NAME: configure and make /src/NAME in /work/CONFIG-NAME.
build() {
    local dir=$WORK/$CONFIG-$1 log=$LOGS/packages-build-$1.log want
    step "build ($CONFIG, $2, $JOBS jobs)"
    # What else is installed decides on CPython's modules.
    want=$({ printf '%s\n' "${OPTIONS[@]+"${OPTIONS[@]}"}"
        cat "$3/configure" "$SYSTEM/var/lib/dpkg/status"; } | sha256sum)
    : > "$log"
    if [ "$(cat "$dir/.configured" 2>/dev/null)" != "$want" ]; then
        rm -rf "$dir"
        mkdir -p "$dir"
        here env -C "/work/$CONFIG-$1" "/src/$1/configure" "${OPTIONS[@]+"${OPTIONS[@]}"}" \
            >>"$log" 2>&1 || die_log "$log" "configure failed for $2 in the user space; look at the lines above"
        printf '%s\n' "$want" > "$dir/.configured"
    fi
    here make -C "/work/$CONFIG-$1" -j"$JOBS" >>"$log" 2>&1 || {
        # Whatever an interrupted run has half-written is not to be used again.
        rm -f "$dir/.configured"
        die_log "$log" "the build of $2 in the user space failed; repair the source and run make again"
    }
    step_done
}

# run_part PART TITLE: a part of run.py, whose last line says how it went.
run_part() {
    local log=$LOGS/packages-$1.log
    step "$2"
    here python3 -B /src/packages/run.py "$1" "/work/$CONFIG-stock/python" "/work/$CONFIG-patch/python" \
        >"$log" 2>&1 || die_log "$log" "this part could not be done"
    step_done "$(tail -n 1 "$log")"
}

need_root packages
need git make gcc
unset "${!PYTHON@}"
mkdir -p "$LOGS"
rm -f "$OUT/table.md" "$OUT/results.json"

STEPS=10
STEP=$STEP_NO STEPS=$STEPS "$ROOT/scripts/tree.sh" || give_up
STEP_NO=2
[ -f "$TREE/Tools/tracemallocbench/compare_traces.py" ] ||
    die "the tree has no Tools/tracemallocbench/compare_traces.py; apply the series that adds it."
stock_source
make_system
# shellcheck disable=SC2086
add_packages "Debian's packages" install $INSTALL
mkdir -p "$WORK"
config_options "$CONFIG"
build stock stock "$STOCK"
build patch "the series" "$TREE"
rm -rf "$WORK/results"
run_part programs "programs that use the packages"
run_part traces "traces of these programs in both builds"
run_part tests "tests of greenlet's and numpy's"
here python3 -B /src/packages/run.py table "/work/$CONFIG-stock/python" "/work/$CONFIG-patch/python" >"$LOGS/packages-table.log" 2>&1 ||
    die_log "$LOGS/packages-table.log" "the table could not be written"
mv -f "$WORK/results/table.md" "$WORK/results/results.json" "$OUT"
sed -n '/^|/p; /^- /p' "$OUT/table.md"
echo "build/packages/table.md is written"
tail -n 1 "$LOGS/packages-table.log"
! grep -q '"failed": [1-9]' "$OUT/results.json" || give_up
