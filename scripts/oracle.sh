#!/usr/bin/env bash
# oracle.sh: let build/CONFIG/python compare tracemalloc with the oracle's own
# traces (Lib/test/tracemalloc_oracle.py) for MINUTES minutes, from SEED on.
# Exit status 1 at the first difference, or at a sanitizer's report.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CONFIG=${CONFIG:-debug}
MINUTES=${MINUTES:-1}
SEED=${SEED:-$((RANDOM * 32768 + RANDOM))}
options=()

check_config "$CONFIG"
# shellcheck source=scripts/options.sh
. "$ROOT/scripts/options.sh"
config_options "$CONFIG"
unset "${!PYTHON@}"
case $CONFIG in
asan | tsan) options=(--no-failures) ;;     # they make it an error
esac

python=$BUILD/$CONFIG/python
log=$LOGS/oracle-$CONFIG.log
[ -x "$python" ] || die "build/$CONFIG/python is not there; run 'make build CONFIG=$CONFIG' first."
mkdir -p "$LOGS"

step "oracle ($CONFIG, seed $SEED, $MINUTES min)"
rc=0
(cd "$LOGS" && MALLOC_ARENA_MAX=1 GLIBC_TUNABLES=glibc.malloc.tcache_count=0 \
    "$python" -m test.tracemalloc_oracle --seed "$SEED" --minutes "$MINUTES" \
    "${options[@]+"${options[@]}"}") </dev/null >"$log" 2>&1 || rc=$?
if [ "$rc" = 0 ] && grep -qE '^(WARNING: ThreadSanitizer|==[0-9]+==ERROR|.*runtime error: )' "$log"; then
    rc=1
fi
[ "$rc" = 0 ] || die_log "$log" "the oracle failed with exit status $rc; SEED=$SEED CONFIG=$CONFIG makes the same sequence again"
step_done "$(grep ' rounds in ' "$log" | tail -n 1 | sed 's/ in [0-9]* s//')"
