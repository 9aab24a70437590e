#!/usr/bin/env bash
# test.sh: run the tests with build/CONFIG/python and count their results.
#
# OWN_TESTS are the series' own files, never run twice; TESTS are CPython's
# files around it, of which a failed one is run once more and then named (some
# depend on timing).  If the series changes Lib/test/test_tracemalloc.py and that
# is among OWN_TESTS, the unmodified file of the pristine tag is run as well.  The
# numbers come from regrtest's own results (count-results.py).  The last line is
# 'N passed, N failed, N skipped'; a failure makes the exit status 1.
#
# TRACE=N: CPython's files are run with -X tracemalloc=N.
# RACES=own, with CONFIG=tsan: data races of CPython's own are no failures, see
# count-reports.py; otherwise each one ends the process, and fails its test.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CONFIG=${CONFIG:-debug}
OWN_TESTS=${OWN_TESTS-test_tracemalloc test_tracemalloc_concurrent test_tracemalloc_counters test_tracemalloc_errors test_tracemalloc_fast_path test_tracemalloc_faults test_tracemalloc_filenames test_tracemalloc_fork test_tracemalloc_interpreters test_tracemalloc_lifecycle test_tracemalloc_memory test_tracemalloc_nomemory test_tracemalloc_oracle test_tracemalloc_others test_tracemalloc_reports test_tracemalloc_threads test_tracemalloc_tracebacks}
TESTS=${TESTS-test_capi test_embed test_interpreters test__interpreters test__interpchannels test_threading test_fork1 test_gc test_sys test_warnings test_support test_inspect}
TEST_TIMEOUT=${TEST_TIMEOUT:-600}
TRACE=${TRACE:-}
RACES=${RACES:-}
STOCK_TEST=Lib/test/test_tracemalloc.py

check_config "$CONFIG"
case $TRACE in
*[!0-9]*) die "TRACE=$TRACE is not a number of frames." ;;
esac
case $RACES,$CONFIG in
,* | own,tsan) ;;
*) die "RACES=$RACES is not known with CONFIG=$CONFIG; leave it out, or use RACES=own with CONFIG=tsan." ;;
esac
need git
# shellcheck source=scripts/options.sh
. "$ROOT/scripts/options.sh"
config_options "$CONFIG"
unset "${!PYTHON@}" FORCE_COLOR

python=$BUILD/$CONFIG/python
out=$BUILD/test/$CONFIG${RACES:+-$RACES}
[ -x "$python" ] || die "build/$CONFIG/python is not there; run 'make build CONFIG=$CONFIG' first."
rm -rf "$out"
mkdir -p "$out"

passed=0
failed=0
skipped=0

# exists NAME: is there such a test?
exists() {
    local path=${1#test.}
    path=$TREE/Lib/test/${path//.//}
    [ -f "$path.py" ] || [ -f "$path/__init__.py" ]
}

# known NAMES: those that exist, in $REPLY; others are said and count as failed.
known() {
    local name
    REPLY=
    for name in $1; do
        if exists "$name"; then
            REPLY="$REPLY $name"
        else
            printf 'error: there is no test %s in build/cpython/Lib/test, it counts as failed; correct TESTS= or OWN_TESTS=.\n' "$name" >&2
            failed=$((failed + 1))
        fi
    done
}

# A shell lets its jobs in the background ignore SIGINT, and cannot undo that;
# a test that interrupts itself would never end.
INTERRUPTIBLE='import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])'

# races_of LABEL: reports go into files, and are no failures.
races_of() {
    [ "$RACES" = own ] || return 0
    mkdir -p "$out/$1.races"
    export TSAN_OPTIONS=$TSAN_OPTIONS:exitcode=0:log_path=$out/$1.races/report
}

# run LABEL TITLE AGAIN REGRTEST-ARGUMENT...: one call of regrtest, counted.
# AGAIN: 'again' leaves failed files out and returns them in $REPLY, or ''.
run() {
    local label=$1 title=$2 again=$3 rc=0 p f s own others options=()
    shift 3
    case $label in cpython | again) options=(${TRACE:+-X "tracemalloc=$TRACE"}) ;; esac
    step "test ($CONFIG): $title"
    (cd "$out" && races_of "$label" \
        && "$python" -I -c "$INTERRUPTIBLE" "$python" ${options[@]+"${options[@]}"} -m test \
        --timeout "$TEST_TIMEOUT" --fail-env-changed -W --junit-xml "$out/$label.xml" "$@") \
        </dev/null >"$out/$label.log" 2>&1 || rc=$?
    if ! "$python" -I "$ROOT/scripts/count-results.py" "$out/$label.xml" "$out/$label.log" "$rc" ${again:+"$again"} \
        >"$out/$label.sum" 2>"$out/$label.err"; then
        printf '0 1 0\nfailed: the results of this run cannot be read (exit status %s)\n' "$rc" >"$out/$label.sum"
    fi
    read -r p f s < "$out/$label.sum"
    REPLY=$(sed -n 's/^again: //p' "$out/$label.sum" | paste -sd' ')
    if [ "$RACES" = own ]; then
        "$python" -I "$ROOT/scripts/count-reports.py" "$out/$label.races" >"$out/$label.own"
        read -r own others < "$out/$label.own"
        f=$((f + own))
        sed -n '/^failed: /p' "$out/$label.own" >>"$out/$label.sum"
    fi
    step_done "$p passed, $f failed, $s skipped${others:+, $others data races in CPython itself}"
    sed -n 's/^failed: /      failed: /p' "$out/$label.sum"
    if [ "$f" != 0 ]; then
        printf '      from %s/%s.log:\n' "${out#"$ROOT"/}" "$label"
        # What unittest says of the failures, and the end.
        awk '/^(FAIL|ERROR): / { on = 1 } /^Ran [0-9]+ test/ { on = 0 } on && n++ < 200' "$out/$label.log" \
            | sed 's/^/      | /'
        tail -n 20 "$out/$label.log" | sed 's/^/      | /'
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    skipped=$((skipped + s))
}

# The unmodified test belongs to ours, if that differs.
stock=
if [[ " $OWN_TESTS " == *' test_tracemalloc '* ]]; then
    if g -C "$TREE" diff --quiet pristine -- "$STOCK_TEST"; then
        echo "      $STOCK_TEST is CPython $VERSION's own, unmodified"
    else
        stock=1
    fi
fi
STEPS=$STEP_NO
for part in "${OWN_TESTS// }" "$stock" "${TESTS// }"; do
    if [ -n "$part" ]; then STEPS=$((STEPS + 1)); fi
done

known "$OWN_TESTS"
if [ -n "$REPLY" ]; then
    # shellcheck disable=SC2086
    run own "the series' own files (${REPLY# })" '' -j"$JOBS" $REPLY
fi

if [ -n "$stock" ]; then
    mkdir -p "$out/stock"
    g -C "$TREE" cat-file blob "pristine:$STOCK_TEST" > "$out/stock/test_tracemalloc.py"
    run stock "CPython $VERSION's own test_tracemalloc.py, unmodified" '' -j1 --testdir "$out/stock" test_tracemalloc
fi

known "$TESTS"
if [ -n "$REPLY" ]; then
    # shellcheck disable=SC2086
    run cpython "CPython's files ($(wc -w <<<"$REPLY"))" again -j"$JOBS" $REPLY
    if [ -n "$REPLY" ]; then
        STEPS=$((STEP_NO + 1))
        again=$REPLY
        # shellcheck disable=SC2086
        run again "once more, one by one: $again" '' -j1 $again
        echo "      run a second time: $again"
    fi
fi

if [ $((passed + failed + skipped)) = 0 ]; then
    echo "error: no test was run; give TESTS= or OWN_TESTS= some names." >&2
    failed=1
fi
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" = 0 ] || give_up
