#!/bin/sh
# Check the models of tracemalloc's counters (counters.pml) and of the lock of
# its books (lock.pml) with SPIN.
#
#   ./check_model.sh          everything: ten minutes, up to 3 GB of memory
#   ./check_model.sh quick    without the largest shapes: two minutes, 1 GB
#
# The correct models have to verify in every shape, with all of their states
# visited and all of their statements reached, and every BUG has to be found.
# Exit status: 0 if so, 1 if not, 2 if it cannot be checked here.
#
# SPIN and CC name other programs than spin and cc.

SPIN=${SPIN:-spin}
CC=${CC:-cc}
MODELS=$(cd "$(dirname "$0")" && pwd)

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
cp "$MODELS/counters.pml" "$MODELS/lock.pml" . || exit 2

failed=0

# run MACROS COMPILER_OPTIONS PAN_OPTIONS: leaves the result in "out".
run() {
    rm -f pan pan.* out "$MODEL.trail"
    # shellcheck disable=SC2086  # these are lists
    if ! "$SPIN" $1 -a "$MODEL" >out 2>&1 ||
       ! "$CC" -w $OPT -DMEMLIM=4000 -DCOLLAPSE $2 -o pan pan.c >>out 2>&1
    then
        cat out >&2
        echo "check_model.sh: $MODEL cannot be compiled." >&2
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
    # The only second thread never finds its own account to be another's.
    *SECOND=1*) echo 0 ;;
    *)  grep ', state [0-9]*, ' out | grep -c -v '"-end-"' ;;
    esac
}

# verify NAME MACROS [COMPILER_OPTIONS PAN_OPTIONS]
verify() {
    run "$2" "${3:--DSAFETY}" "${4:--m4000000}"
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
    printf '%-36s %10s %7s %6s  %s\n' \
           "$1" "${states:--}" "${seconds:-0}" "${memory:--}" "$result"
}

# refute NUMBER NAME [MACROS]: breadth first, for the shortest way to it.
refute() {
    run "-DBUG=$1 ${3:-}" '-DSAFETY -DBFS' ''
    case $(grep -m 1 '^pan:1:' out) in
    '')                     result="WRONG: not found"; failed=1 ;;
    *'invalid end state'*)  result="deadlock" ;;
    *'==(true_sum+'*)       result="committed is not sum + credits" ;;
    *'(committed==true_sum)&&'*)
                            result="a wrong pair is read" ;;
    *'(committed<=peak)'*)  result="committed above the peak" ;;
    *'(peak==true_peak)'* | *'lowest['*)
                            result="wrong peak" ;;
    *'(k==sole)'*)          result="open besides the sole account" ;;
    *'share['*)             result="share is not what is in the books" ;;
    *'had=='*)              result="wrong pair in the child" ;;
    *'open['*)              result="list is not the open accounts" ;;
    *'alive['*)             result="touches freed memory" ;;
    *'(users==1)'*)         result="two have the lock" ;;
    *'(x==count)'*)         result="an increment is lost" ;;
    *'assertion violated'*) result=$(grep -m 1 '^pan:1:' out) ;;
    *)                      result="WRONG: not found"; failed=1 ;;
    esac
    printf '%3s  %-44s %5s  %s\n' "$1" "$2" "${depth:--}" "$result"
}

head_of_shapes() {
    echo "$1"
    printf '%-36s %10s %7s %6s\n' '' states seconds MB
}

head_of_bugs() {
    echo
    echo 'Each BUG, how many steps it takes, and what goes wrong:'
}

MODEL=counters.pml OPT=-O1
head_of_shapes 'The counters; interpreters, units of memory:'
verify '2, 3'                   '-DINTERPRETERS=2 -DMEMORY=3'
verify '2, 2, progress'         '-DINTERPRETERS=2' -DNP -l\ -m2000000
verify '2, 1, one second thread' \
    '-DINTERPRETERS=2 -DMEMORY=1 -DSECOND=1'
if [ -z "$QUICK" ]; then
    OPT=-O2
    verify '2, 4'               '-DINTERPRETERS=2 -DMEMORY=4'
    verify '2, 2, one second thread' '-DINTERPRETERS=2 -DSECOND=1'
    verify '2, 1, one second thread, progress' \
        '-DINTERPRETERS=2 -DMEMORY=1 -DSECOND=1' -DNP '-l -m4000000'
    verify '2, 1, two second threads' \
        '-DINTERPRETERS=2 -DMEMORY=1 -DSECOND=2'
    verify '3, 1'               -DMEMORY=1
    verify '3, 2, none ends'    -DENDING=0 -DSAFETY -m10000000
fi

# Small searches: compiling them takes longer.
OPT=-O0
head_of_bugs
TWO=-DINTERPRETERS=2
refute  1 'new peak without closing the others'         $TWO
refute  2 'closing without the lock of the books'       $TWO
refute  3 'reset of the peak without closing'           $TWO
refute  4 'more credit than there is below the peak'    $TWO
refute  5 'clear without closing the others'            $TWO
refute  6 'read without closing'                        $TWO
refute  7 'foreign free without the mutex'              $TWO
refute  8 'remove with the mutex does not look again'   $TWO
refute  9 'stop leaves the account open'                $TWO
refute 10 'detached asks for tracing before the mutex'  "$TWO -DSECOND=1"
refute 11 'the mutex after the lock of the books'       $TWO
refute 12 'own account still open as all are closed'    $TWO
refute 13 'the peak outlives tracing'                   $TWO
refute 14 'start leaves the account as allocated'       $TWO
refute 15 'clear without the lock of the books'         "$TWO -DSECOND=1"
refute 16 'interpreter ends without stop'               $TWO
refute 17 'fork without the locks of the books'         $TWO
refute 18 'read with own books locked'                  $TWO
refute 19 'sole account while another is open'          "$TWO -DENDING=0"
refute 20 'add opens an account besides the sole one'   "$TWO -DENDING=0"
refute 21 'remove opens an account besides the sole one' "$TWO -DENDING=0"
refute 22 'stop of another besides the sole account' \
    "$TWO -DENDING=0 -DMEMORY=3"
refute 23 'lowest is not kept'                          $TWO
refute 24 'closing forgets the growth of the peak'      $TWO
refute 25 'closed account stays the sole one'           $TWO
refute 26 'child forgets the growth of the peak'        $TWO

MODEL=lock.pml
echo
head_of_shapes 'The lock; threads without the GIL, pending stores:'
verify '1, 2'                   '-DFOREIGN=1'
verify '2, 2'                   '-DFOREIGN=2'
verify '2, 6'                   '-DFOREIGN=2 -DPENDING=6'
verify '1, 2, thread 0'         '-DFOREIGN=1 -DFAIR=1 -DWATCH=0' \
    '-DNP -DNFAIR=3' '-l -f'
verify '1, 2, thread 2'         '-DFOREIGN=1 -DFAIR=1 -DWATCH=2' \
    '-DNP -DNFAIR=3' '-l -f'
if [ -z "$QUICK" ]; then
    OPT=-O2
    verify '2, 2, thread 0'     '-DFOREIGN=2 -DFAIR=1 -DWATCH=0' \
        '-DNP -DNFAIR=3' '-l -f -m1000000'
    verify '2, 2, thread 2'     '-DFOREIGN=2 -DFAIR=1 -DWATCH=2' \
        '-DNP -DNFAIR=3' '-l -f -m1000000'
    verify '3, 2'               '-DFOREIGN=3'
    OPT=-O0
fi

head_of_bugs
refute  1 'no membarrier()'
refute  2 'load of RESERVED before store to INSIDE'
refute  3 'does not wait until nobody is inside'
refute  4 'does not clear RESERVED'
refute  5 'reserved without the mutex'
refute  6 'mutex unlocked before INSIDE is set'
refute  7 'waits for the mutex while INSIDE is set'
refute  8 'gives up and leaves it not reserved'
refute  9 'store to DATA after that to INSIDE'
refute 10 'thread without the GIL takes it for reserved'
refute 11 'GIL dropped inside'

echo
if [ $failed -ne 0 ]; then
    echo 'Something above is WRONG.'
    exit 1
fi
echo 'All is as it should be.'
