#!/bin/sh
# Check counters.pml, the model of tracemalloc's counters, with SPIN.
#
#   ./check_model.sh          everything: ten minutes, up to 4 GB of memory
#   ./check_model.sh quick    without the largest shapes: two minutes, 1 GB
#
# The correct model has to verify in every shape, with all of its states
# visited and all of its statements reached, and every BUG has to be found.
# Exit status: 0 if so, 1 if not, 2 if it cannot be checked here.
#
# SPIN and CC name other programs than spin and cc.

SPIN=${SPIN:-spin}
CC=${CC:-cc}
MODEL=$(cd "$(dirname "$0")" && pwd)/counters.pml

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
cp "$MODEL" counters.pml || exit 2

failed=0
OPT=-O2

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
    # No block has 2 units.
    *MEMORY=1*) echo 0 ;;
    # The only detached thread never finds its own account in the list.
    *DETACHED=1*FINE=1*) echo 0 ;;
    *)  grep ', state [0-9]*, ' out | grep -c -v '"-end-"' ;;
    esac
}

# verify NAME MACROS [COMPILER_OPTIONS PAN_OPTIONS]
verify() {
    run "$2" "${3:--DSAFETY}" "${4:--m2000000}"
    if ! grep -q 'errors: 0' out; then
        result="WRONG: $(grep -m 1 '^pan:1:' out)"
    elif grep -q -e 'not completed' -e 'too small' -e 'out of memory' \
              -e 'resized' out
    then
        result="WRONG: not all states were visited"
    elif [ "$(unreached "$2")" -ne 0 ]; then
        result="WRONG: not all statements were reached"
    else
        result="correct"
    fi
    [ "$result" = correct ] || failed=1
    printf '%-34s %10s %7s %6s  %s\n' \
           "$1" "${states:--}" "${seconds:-0}" "${memory:--}" "$result"
}

# refute NUMBER NAME [MACROS]: breadth first, for the shortest way to it.
refute() {
    run "-DINTERPRETERS=2 -DBUG=$1 ${3:-}" '-DSAFETY -DBFS' ''
    case $(grep -m 1 '^pan:1:' out) in
    '')                     result="WRONG: not found"; failed=1 ;;
    *'invalid end state'*)  result="deadlock" ;;
    *'==(true_sum+'*)       result="committed is not sum + credits" ;;
    *'(committed==true_sum)&&'*)
                            result="a wrong pair is read" ;;
    *'(committed<=peak)'*)  result="committed above the peak" ;;
    *'(peak==true_peak)'*)  result="wrong peak" ;;
    *'credit[i]!='*)        result="changes a closed account" ;;
    *'share['*)             result="share is not the table's size" ;;
    *'traced['*)            result="traced is not the table's size" ;;
    *'had==owned'*)         result="wrong sum in the child" ;;
    *'open['*)              result="list is not the open accounts" ;;
    *'alive['*)             result="touches freed memory" ;;
    *'assertion violated'*) result=$(grep -m 1 '^pan:1:' out) ;;
    *)                      result="WRONG: not found"; failed=1 ;;
    esac
    printf '%3s  %-44s %5s  %s\n' "$1" "$2" "${depth:--}" "$result"
}

echo 'The correct model; interpreters, threads, units of memory:'
printf '%-34s %10s %7s %6s\n' '' states seconds MB
verify '2, one thread each, 4'  '-DINTERPRETERS=2 -DMEMORY=4'
verify '2, 3, small steps'      '-DINTERPRETERS=2 -DMEMORY=3 -DFINE=1'
verify '2, 3, frugal closing'   '-DINTERPRETERS=2 -DMEMORY=3 -DFRUGAL=1'
verify '2, 3, all lock books'   '-DINTERPRETERS=2 -DMEMORY=3 -DLOCKED=1'
verify '2, 3, shares'           '-DINTERPRETERS=2 -DMEMORY=3 -DSHARES=1'
verify '2, 3, as in the C code' \
    '-DINTERPRETERS=2 -DMEMORY=3 -DSHARES=1 -DLOCKED=1'
verify '2, 2, progress'         '-DINTERPRETERS=2' -DNP '-l -m2000000'
verify '2, one detached, 2'     '-DINTERPRETERS=2 -DDETACHED=1'
verify '2, one detached, 2, all lock' \
    '-DINTERPRETERS=2 -DDETACHED=1 -DLOCKED=1'
verify '2, one detached, 2, shares' \
    '-DINTERPRETERS=2 -DDETACHED=1 -DSHARES=1'
verify '2, one detached, 2, as in C' \
    '-DINTERPRETERS=2 -DDETACHED=1 -DSHARES=1 -DLOCKED=1'
if [ -z "$QUICK" ]; then
    verify '2, one detached, 2, small steps' \
        '-DINTERPRETERS=2 -DDETACHED=1 -DFINE=1'
    verify '2, one detached, 2, progress' \
        '-DINTERPRETERS=2 -DDETACHED=1' -DNP '-l -m5000000'
    verify '2, one detached, 3' \
        '-DINTERPRETERS=2 -DDETACHED=1 -DMEMORY=3' -DSAFETY -m10000000
    verify '2, two detached, 1' '-DINTERPRETERS=2 -DDETACHED=2 -DMEMORY=1'
    verify '3, one thread each, 2' '' -DSAFETY -m5000000
    verify '3, one thread each, 2, shares' -DSHARES=1 -DSAFETY -m5000000
    verify '3, 3, none ends, no fork' \
        '-DMEMORY=3 -DENDING=0 -DFORKING=0' -DSAFETY -m10000000
fi

# Small searches: compiling them takes longer.
OPT=-O1
echo
echo 'Each BUG, how many steps it takes, and what goes wrong:'
refute  1 'new peak without closing the others'
refute  2 'closing by load and store'
refute  3 'reset of the peak without closing'
refute  4 'more credit than there is below the peak'
refute  5 'clear without closing the others'
refute  5 'the same, with shares'                       -DSHARES=1
refute  6 'read without closing'
refute  7 'foreign free without the global mutex'       -DLOCKED=1
refute  8 'remove with the mutex does not look again'
refute  8 'the same, with shares'                       -DSHARES=1
refute  9 'traced[] is not changed atomically'          -DDETACHED=1
refute 10 'stop leaves the account open'
refute 10 'the same, with shares'                       -DSHARES=1
refute 11 'tracing[] is not asked again'                -DDETACHED=1
refute 12 'add by load and store'
refute 13 'the mutex after the mutex of the books'      -DLOCKED=1
refute 14 'own credit not taken back'                     -DMEMORY=3
refute 15 'last stop leaves the peak'
refute 16 'start leaves the account as allocated'
refute 17 'clear without the mutex of the books'        -DDETACHED=1
refute 18 'interpreter ends without stop'
refute 19 'child subtracts the other interpreters'

echo
if [ $failed -ne 0 ]; then
    echo 'Something above is WRONG.'
    exit 1
fi
echo 'All is as it should be.'
