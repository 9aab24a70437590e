#!/bin/sh
# Check the model of tracemalloc's counters (counters.pml) with SPIN.
#
#   ./check_model.sh          everything: two minutes, up to 2 GB of memory
#   ./check_model.sh quick    without the largest shapes: one minute, 400 MB
#
# The correct model has to verify in every shape, with all of its states
# visited and all of its statements reached, and every BUG has to be found.
# Exit status: 0 if so, 1 if not, 2 if it cannot be checked here.
#
# SPIN and CC name other programs than spin and cc.

SPIN=${SPIN:-spin}
CC=${CC:-cc}
HERE=$(cd "$(dirname "$0")" && pwd)

for program in "$SPIN" "$CC"; do
    if ! command -v "$program" >/dev/null 2>&1; then
        echo "check_model.sh: cannot run without $program: install SPIN" \
             "(https://spinroot.com) and a C compiler." >&2
        exit 2
    fi
done
if [ $# -gt 1 ] || [ "${1:-quick}" != quick ]; then
    echo "usage: check_model.sh [quick]" >&2
    exit 2
fi
QUICK=${1:-}

TEMP=$(mktemp -d) || exit 2
trap 'rm -rf "$TEMP"' EXIT
trap 'exit 2' HUP INT TERM
cd "$TEMP" || exit 2
cp "$HERE/counters.pml" . || exit 2

failed=0

# run MACROS COMPILER_OPTIONS PAN_OPTIONS: leaves the result in "out".
run() {
    rm -f pan pan.* out counters.pml.trail
    # shellcheck disable=SC2086  # these are lists
    if ! "$SPIN" $1 -a counters.pml >out 2>&1 ||
       ! "$CC" -w $OPT -DMEMLIM=4000 -DCOLLAPSE $2 -o pan pan.c >>out 2>&1
    then
        cat out >&2
        echo "check_model.sh: counters.pml cannot be compiled." >&2
        exit 2
    fi
    # shellcheck disable=SC2086
    nice ./pan $3 >out 2>&1
    states=$(awk '/states, stored/ {print $1; exit}' out)
    memory=$(awk '/total actual memory usage/ {printf "%.0f", $1}' out)
    seconds=$(awk '/elapsed time/ {print $4}' out)
    depth=$(sed -n 's/.*depth reached \([0-9]*\).*/\1/p' out)
}

# How many statements were not reached, but for the ends of endless loops.
unreached() {
    case $1 in
    *MEMORY=1*) echo 0 ;;       # no block has 2 units
    *)  grep ', state [0-9]*, ' out | grep -c -v '"-end-"' ;;
    esac
}

# verify NAME MACROS [COMPILER_OPTIONS PAN_OPTIONS]
verify() {
    run "$2" "${3:--DSAFETY -DBFS}" "${4:-}"
    if ! grep -q 'errors: 0' out; then
        result="WRONG: $(grep -m 1 '^pan:1:' out)"
    elif grep -q -e 'not completed' -e 'too small' -e 'out of memory' out
    then
        result="WRONG: not all states were visited"
    elif [ "$(unreached "$2")" -ne 0 ]; then
        result="WRONG: not all statements were reached"
    else
        result="correct"
    fi
    [ "$result" = correct ] || failed=1
    printf '%-36s %10s %7s %6s  %s\n' \
           "$1" "${states:--}" "${seconds:-0}" "${memory:--}" "$result"
}

# refute NUMBER NAME [MACROS]: breadth first, for the shortest way to it.
refute() {
    run "-DBUG=$1 ${3:-}" '-DSAFETY -DBFS' ''
    case $(grep -m 1 '^pan:1:' out) in
    '')                     result="WRONG: not found"; failed=1 ;;
    *'invalid end state'*)  result="deadlock" ;;
    *'(committed==true_sum)'*)  result="a wrong sum is read" ;;
    *'(committed=='*)       result="committed is not sum + credit" ;;
    *'(peak==true_peak)'*)  result="a wrong peak is read" ;;
    *'==true_peak)'*)       result="wrong peak" ;;
    *'(committed<=peak)'*)  result="committed above the peak" ;;
    *'!(held['*)            result="open credit is opened" ;;
    *'held['*)              result="credit used after it was taken" ;;
    *'assertion violated'*) result=$(grep -m 1 '^pan:1:' out) ;;
    *)                      result="WRONG: not found"; failed=1 ;;
    esac
    printf '%3s  %-44s %5s  %s\n' "$1" "$2" "${depth:--}" "$result"
}

OPT=-O2
echo 'The counters; threads, units of memory:'
printf '%-36s %10s %7s %6s\n' '' states seconds MB
verify '2, 2'                   ''
verify '2, 3'                   '-DMEMORY=3'
verify '2, 2, 2 beyond the peak' '-DEXTRA=2'
verify '2, 2, progress'         '' -DNP '-l -m4000000'
if [ -z "$QUICK" ]; then
    verify '2, 4'               '-DMEMORY=4'
    verify '3, 1'               '-DTHREADS=3 -DMEMORY=1'
    verify '3, 2'               '-DTHREADS=3'
fi

# Small searches: compiling them takes longer.
OPT=-O0
echo
echo 'Each BUG, how many steps it takes, and what goes wrong:'
refute  1 'no barrier'
refute  2 'load of open before store to inside'
refute  3 'does not wait until the owner is not inside'
refute  4 'does not clear open'
refute  5 'inside cleared before the credit is written'
refute  6 'waits for the mutex while inside'
refute  7 'new peak without closing the others'
refute  8 'removes while growing without closing the others'
refute  9 'add does not raise the peak'
refute 10 'the peak is not raised when credit is taken'
refute 11 'more credit than there is below the peak'
refute 12 'opened without the mutex'
refute 13 'opened though it is open'
refute 14 'credit beyond the peak though below the peak'
refute 15 'credit beyond the peak though others have some'
refute 16 'credit beyond the peak is returned'
refute 17 'read without closing'
refute 18 'reset without closing'
refute 19 'credit of another thread closed without barrier'
refute 20 'credit that was taken is not forgotten'
refute 21 'credit of the only thread not closed by others'
refute 22 'only thread, though others have credit'
refute 23 'lowest not noted when something is freed'
refute 24 'lowest not looked at when credit is taken'

echo
if [ $failed -ne 0 ]; then
    echo 'Something above is WRONG.'
    exit 1
fi
echo 'All is as it should be.'
