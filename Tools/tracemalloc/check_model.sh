#!/bin/sh
# Check the model of tracemalloc's counters (counters.pml) with SPIN.
#
#   ./check_model.sh          everything: three minutes, up to 2 GB of memory
#   ./check_model.sh quick    without the largest shapes: two minutes, 1 GB
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
    # No block has 2 units, or no peak is reset.
    *MEMORY=1* | *RESETS=0*) echo 0 ;;
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
    *'(committed=='*)       result="committed is not sum + credit" ;;
    *'(c==true_sum)'*)      result="a wrong sum is read" ;;
    *'(p>='*)
                            result="a wrong peak is read" ;;
    *'(true_peak=='*)       result="wrong peak" ;;
    *'(committed<=peak)'*)  result="committed above the peak" ;;
    *'!(held['*)            result="open credit is opened" ;;
    *'held['*)              result="credit used after it was taken" ;;
    *'assertion violated'*) result=$(grep -m 1 '^pan:1:' out) ;;
    *)                      result="WRONG: not found"; failed=1 ;;
    esac
    printf '%3s  %-44s %5s  %s\n' "$1" "$2" "${depth:--}" "$result"
}

OPT=-O2
echo 'The counters; threads, units of memory, resets:'
printf '%-36s %10s %7s %6s\n' '' states seconds MB
verify '2, 2, 1'                ''
verify '2, 2, 2'                '-DRESETS=2'
verify '2, 2, 0, progress'      '-DRESETS=0 -DBY_MUTEX=0' -DNP '-l -m4000000'
if [ -z "$QUICK" ]; then
    verify '2, 2, 1, progress'  '' -DNP '-l -m8000000'
    verify '2, 3, 1'            '-DMEMORY=3 -DBY_MUTEX=0'
    verify '3, 1, 1'            '-DTHREADS=3 -DMEMORY=1 -DBY_MUTEX=0'
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
refute  6 'new peak without closing the others'
refute  7 'refill makes a new peak among others'
refute  8 'refill makes a new peak unnoticed'
refute  9 'remove does not raise the peak'
refute 10 'add does not look at the number again'
refute 11 'more credit than there is below the peak'
refute 12 'opened without the mutex'
refute 13 'read without closing'
refute 14 'read does not compare peak and word'
refute 15 'reset without closing'
refute 16 'reset stores the peak and nothing else'
refute 17 'reset does not change the tag of the word'
refute 18 'peak raised though it was reset since'
refute 19 'reset changes the tag before the peak'
refute 20 'peak raised by load and store'
refute 21 'waits for the mutex while inside'
refute 22 'counted as closed before it is taken'
refute 23 'refill while not inside'
refute 24 'opened though it is open'
refute 25 'add below the peak does not compare the tag'
refute 26 'opened without raising the peak'
refute 27 'remove does not compare the word'
refute 28 'remove leaves credit beyond the peak open'
refute 29 'growing though something was removed'
refute 30 'growing ends while others have credit'
refute 31 'growing ends without raising the peak'
refute 32 'growing though all credit is below the peak'
refute 33 'refill: credit beyond the peak is returned'
refute 34 'open: credit beyond the peak is returned'
refute 35 'add takes an old peak for a sum that grows'

echo
if [ $failed -ne 0 ]; then
    echo 'Something above is WRONG.'
    exit 1
fi
echo 'All is as it should be.'
