#!/usr/bin/env bash
# bench.sh [traces]: build stock and the series (CONFIG=release, or optimized;
# with FREETHREADED=1 also freethreaded) and compare them with
# Tools/tracemallocbench.
#
# Leaves build/bench/results.json, table.md and, where matplotlib can be had,
# *.svg.  QUICK=1 measures less, ONLY='GROUP...' some groups alone.  With
# 'traces' nothing is measured: do both builds trace the same?  Exit status 1
# if not.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

OUT=$BUILD/bench
TOOL=$TREE/Tools/tracemallocbench
CONFIG=${CONFIG:-release}
case $CONFIG in
release | optimized) ;;
*) die "CONFIG=$CONFIG is not for measuring; use release or optimized." ;;
esac
configs="$CONFIG${FREETHREADED:+ freethreaded}"
unset "${!PYTHON@}"
mkdir -p "$OUT" "$LOGS"

# run_steps COUNT SCRIPT ARGUMENT...: another script, which makes COUNT steps.
run_steps() {
    local count=$1
    shift
    STEP=$STEP_NO STEPS=$STEPS "$@" || give_up
    STEP_NO=$((STEP_NO + count))
}

STEPS=$((STEP_NO + 2 + 5 * $(wc -w <<<"$configs")))
if [ "${1:-}" = traces ]; then STEPS=$((STEPS + 1)); else STEPS=$((STEPS + 2)); fi
run_steps 2 "$ROOT/scripts/tree.sh"
[ -d "$TOOL" ] || die "the tree has no Tools/tracemallocbench; apply the series that adds it."
for config in $configs; do
    CONFIG=$config run_steps 3 "$ROOT/scripts/build.sh" stock
    CONFIG=$config run_steps 2 "$ROOT/scripts/build.sh"
done

builds=(--stock "$BUILD/stock-$CONFIG/python" --patched "$BUILD/$CONFIG/python" --out "$OUT")
if [ "${1:-}" = traces ]; then
    log=$LOGS/bench-traces.log
    step "traces of the programs in both builds"
    "$BUILD/$CONFIG/python" -B "$TOOL/compare_traces.py" "${builds[@]}" </dev/null >"$log" 2>&1 ||
        die_log "$log" "the traces differ, or a program failed"
    step_done "$(tail -n 1 "$log")"
    exit 0
fi

# can_plot PYTHON: does it have matplotlib?
can_plot() { "$1" -c 'import matplotlib' >/dev/null 2>&1; }

# find_runner: the Python that measures and plots, in $runner.
find_runner() {
    local python
    for python in python3 /usr/bin/python3 "$OUT/venv/bin/python"; do
        runner=$python
        if can_plot "$python"; then return; fi
    done
    {
        rm -rf "$OUT/venv"
        python3 -m venv "$OUT/venv" &&
            "$OUT/venv/bin/python" -m pip install --quiet --timeout 15 --retries 1 matplotlib
    } </dev/null >"$LOGS/bench-venv.log" 2>&1 || :
    if can_plot "$runner"; then return; fi
    runner=$BUILD/$CONFIG/python
}

step "matplotlib"
find_runner
if can_plot "$runner"; then
    step_done "of $runner"
else
    step_done "not to be had (build/log/bench-venv.log), there will be no plots"
fi

options=("${builds[@]}")
if [ -n "${FREETHREADED:-}" ]; then
    options+=(--freethreaded-stock "$BUILD/stock-freethreaded/python"
        --freethreaded-patched "$BUILD/freethreaded/python")
fi
if [ -n "${QUICK:-}" ]; then options+=(--quick); fi
for group in ${ONLY:-}; do options+=(--only "$group"); done

step "measurements, two minutes with QUICK=1 and forty without"
end_line
rm -f "$OUT"/*.svg "$OUT/table.md" "$OUT/results.json"
status=0
"$runner" -B "$TOOL" "${options[@]}" </dev/null || status=$?
[ -f "$OUT/table.md" ] || die "the measurements ended with exit status $status, see the lines above."
sed -n '/^## Budget/,/^## [^B]/{/^|/p}' "$OUT/table.md"
[ "$status" = 0 ] || die "measurements failed in the patched build, they are named above; Tools/tracemallocbench/README.md says how to run one group alone."
echo "build/bench: $(cd "$OUT" && echo results.json table.md ./*.svg | sed 's,\./,,g')"
