#!/usr/bin/env bash
# packages.sh: do packages that were compiled for stock work with the series?
#
# Makes a user space of Debian 13 in build/packages/debian (by debootstrap, as
# root), builds stock and the series in it (CONFIG=release or optimized), and
# has scripts/packages/run.py let both run Debian's packages: programs that use
# them, the traces that these leave behind, and tests of greenlet's and numpy's.
#
# Leaves build/packages/table.md and results.json; the last line is 'N passed,
# N failed, N skipped', where skipped is also what fails with stock as well.
# Exit status 1: something failed; 2: it is not possible on this machine.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/debian.sh
. "$ROOT/scripts/debian.sh"
# shellcheck source=scripts/stock.sh
. "$ROOT/scripts/stock.sh"
# shellcheck source=scripts/options.sh
. "$ROOT/scripts/options.sh"

OUT=$BUILD/packages
SYSTEM=$OUT/debian
WORK=$OUT/work
SUITE=trixie            # Debian 13, whose Python is 3.13
# What CPython is built with; the packages, and what their tests need.
# debootstrap does not find python3-cffi-backend by itself: cryptography names
# only what that provides.
INCLUDE="gcc libc6-dev make pkgconf zlib1g-dev libssl-dev libffi-dev libsqlite3-dev libbz2-dev liblzma-dev
    python3-numpy python3-scipy python3-pandas python3-lxml python3-greenlet python3-gevent python3-sqlalchemy
    python3-django python3-aiohttp python3-uvloop python3-pydantic python3-cryptography python3-cffi-backend
    python3-orjson python3-psutil python3-pytest python3-hypothesis python3-objgraph"

CONFIG=${CONFIG:-release}
check_config "$CONFIG"
case $CONFIG in
release | optimized) ;;
*) die "CONFIG=$CONFIG cannot load Debian's extension modules; use release or optimized." ;;
esac

# impossible SENTENCE: die, but nothing has failed.
impossible() {
    end_line
    printf 'error: %s\n' "$*" >&2
    REPORTED=1
    exit 2
}

# apart COMMAND...: run it where its mounts and its processes end with it,
# whatever ends it.
apart() {
    unshare --mount --propagation private --pid --fork --kill-child --mount-proc -- "$@"
}

# The shell stays as process 1, for only such a one ends children of others.
# shellcheck disable=SC2016 # it is for the inner shell
ENTER='set -e
system=$1 work=$2 stock=$3 patched=$4 programs=$5
shift 5
mount -t proc proc "$system/proc"
mount --bind "$work" "$system/work"
for pair in "$stock:stock" "$patched:patch" "$programs:packages"; do
    mount --bind "${pair%:*}" "$system/src/${pair##*:}"
    mount -o remount,bind,ro "$system/src/${pair##*:}"
done
status=0
chroot "$system" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 "$@" || status=$?
exit "$status"'

# inside COMMAND...: run it in the user space.  The sources are in /src, not
# to be written to; build/packages/work is /work.
inside() {
    apart bash -c "$ENTER" inside "$SYSTEM" "$WORK" "$STOCK" "$TREE" "$ROOT/scripts/packages" "$@"
}

make_system() {
    local mirror keyring log=$LOGS/packages-debootstrap.log
    step "user space of Debian 13"
    if [ "$(cat "$SYSTEM/.made-of" 2>/dev/null)" = "$SUITE $INCLUDE" ]; then
        step_done present
        return
    fi
    if ! command -v debootstrap >/dev/null 2>&1; then
        { apt-get -q update && apt-get -q install -y --no-install-recommends debootstrap; } </dev/null >"$log" 2>&1 ||
            impossible "debootstrap is needed and cannot be installed; install it first, on Debian with 'apt-get install debootstrap'."
    fi
    mirror=$(pick_mirror)
    [ -n "$mirror" ] || impossible "there is no Debian mirror among this machine's apt sources, and the packages come from there; add one."
    keyring=$(debian_keyring)
    [ -n "$keyring" ] || impossible "the keys of Debian's archive are needed; install them first, with 'apt-get install debian-archive-keyring'."
    make_tmp
    # shellcheck disable=SC2086
    apart debootstrap --variant=minbase --keyring="$keyring" --include="$(paste -sd, <<<"$(printf '%s\n' $INCLUDE)")" \
        "$SUITE" "$tmp/debian" "$mirror" </dev/null >"$log" 2>&1 || {
        tail -n 20 "$log" "$tmp/debian/debootstrap/debootstrap.log" >&2 2>/dev/null || :
        impossible "debootstrap could not make a user space of Debian 13 from $mirror; look at the lines above."
    }
    rm -rf "$tmp/debian/var/cache/apt/archives"
    mkdir -p "$tmp/debian"/{work,src/stock,src/patch,src/packages}
    printf '%s\n' "$SUITE $INCLUDE" > "$tmp/debian/.made-of"
    if [ -e "$SYSTEM" ]; then mv "$SYSTEM" "$tmp/old"; fi
    mkdir -p "$OUT"
    mv -T "$tmp/debian" "$SYSTEM"
    step_done made
}

# build NAME: configure and make /src/NAME in /work/CONFIG-NAME.
build() {
    local dir=$WORK/$CONFIG-$1 log=$LOGS/packages-build-$1.log want
    step "build ($CONFIG, $2, $JOBS jobs)"
    want=$({ printf '%s\n' "${OPTIONS[@]+"${OPTIONS[@]}"}"
        cat "$3/configure" "$SYSTEM/.made-of"; } | sha256sum)
    : > "$log"
    if [ "$(cat "$dir/.configured" 2>/dev/null)" != "$want" ]; then
        rm -rf "$dir"
        mkdir -p "$dir"
        inside env -C "/work/$CONFIG-$1" "/src/$1/configure" "${OPTIONS[@]+"${OPTIONS[@]}"}" \
            </dev/null >>"$log" 2>&1 || die_log "$log" "configure failed for $2 in the user space; look at the lines above"
        printf '%s\n' "$want" > "$dir/.configured"
    fi
    inside make -C "/work/$CONFIG-$1" -j"$JOBS" </dev/null >>"$log" 2>&1 ||
        die_log "$log" "the build of $2 in the user space failed; repair the source and run make again"
    step_done
}

# run_part PART TITLE: a part of run.py, whose last line says how it went.
run_part() {
    local log=$LOGS/packages-$1.log
    step "$2"
    inside python3 -B /src/packages/run.py "$1" "/work/$CONFIG-stock/python" "/work/$CONFIG-patch/python" \
        </dev/null >"$log" 2>&1 || die_log "$log" "this part could not be done"
    step_done "$(tail -n 1 "$log")"
}

[ "$(id -u)" = 0 ] || impossible "'make packages' makes a user space of Debian 13, which only root can; run it as root."
need git make gcc unshare chroot mount
apart true 2>/dev/null || impossible "'make packages' needs namespaces of its own for mounts and processes, which this machine refuses; run it where root may make them."
unset "${!PYTHON@}"
mkdir -p "$LOGS"
rm -f "$OUT/table.md" "$OUT/results.json"

STEPS=9
STEP=$STEP_NO STEPS=$STEPS "$ROOT/scripts/tree.sh" || give_up
STEP_NO=2
[ -f "$TREE/Tools/tracemallocbench/compare_traces.py" ] ||
    die "the tree has no Tools/tracemallocbench/compare_traces.py; apply the series that adds it."
stock_source
make_system
mkdir -p "$WORK"
config_options "$CONFIG"
build stock stock "$STOCK"
build patch "the series" "$TREE"
rm -rf "$WORK/results"
run_part programs "programs that use the packages"
run_part traces "traces of these programs in both builds"
run_part tests "tests of greenlet's and numpy's"
inside python3 -B /src/packages/run.py table "/work/$CONFIG-stock/python" "/work/$CONFIG-patch/python" >"$LOGS/packages-table.log" 2>&1 ||
    die_log "$LOGS/packages-table.log" "the table could not be written"
mv -f "$WORK/results/table.md" "$WORK/results/results.json" "$OUT"
sed -n '/^|/p; /^- /p' "$OUT/table.md"
echo "build/packages/table.md is written"
tail -n 1 "$LOGS/packages-table.log"
! grep -q '"failed": [1-9]' "$OUT/results.json" || give_up
