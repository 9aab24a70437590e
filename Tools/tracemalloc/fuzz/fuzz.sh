#!/usr/bin/env bash
# Fuzz the containers of tracemalloc.
#
#   fuzz.sh BUILD-DIR [SECONDS]      replay the corpus, then fuzz each target (60)
#   fuzz.sh BUILD-DIR replay         only replay; needs gcc, but no clang
#   fuzz.sh --minimise BUILD-DIR [SECONDS]    fuzz (60) and renew corpus/*.txt
#   fuzz.sh --mutants BUILD-DIR [SECONDS]     is every bug of mutants.py found
#                       by the corpus, and from nothing within SECONDS (60)?
#
# BUILD-DIR is where CPython was configured: its pyconfig.h is all that is used.
# Exit status: 0 if all is well, 1 if not, 2 if it cannot be found out here.
#
# CLANG, CC and PYTHON name other programs than clang, gcc and python3, TARGETS
# fewer targets than "map table pools intern", FUZZ_DIR a directory to work in,
# which is kept, and FUZZ_SOURCE another source tree.

set -euo pipefail
export LC_ALL=C

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SOURCE=${FUZZ_SOURCE:-$HERE/../../..}
CLANG=${CLANG:-clang}
CC=${CC:-gcc}
PYTHON=${PYTHON:-python3}
TARGETS=${TARGETS:-map table pools intern}
MAX_FILES=36                    # of a corpus
MAX_LENGTH=400                  # of an input

die() {
    echo "fuzz.sh: $1" >&2
    exit "${2:-2}"
}

usage() {
    die "usage: fuzz.sh [--minimise | --mutants] BUILD-DIR [SECONDS | replay]"
}

mode=fuzz
case ${1:-} in
--minimise | --mutants) mode=${1#--}; shift ;;
-*) usage ;;
esac
if [ $# -lt 1 ] || [ $# -gt 2 ]; then usage; fi
BUILD=$1
SECS=${2:-60}
if [ "$mode $SECS" = 'fuzz replay' ]; then mode=replay; SECS=1; fi
# To libFuzzer 0 seconds are all there are.
case $SECS in '' | 0* | *[!0-9]*) usage ;; esac
[ -f "$BUILD/pyconfig.h" ] ||
    die "$BUILD has no pyconfig.h: configure CPython there first."
[ -f "$SOURCE/Python/tracemalloc_map.c" ] ||
    die "$SOURCE is no CPython that has Python/tracemalloc_map.c."

if [ -n "${FUZZ_DIR:-}" ]; then
    mkdir -p "$FUZZ_DIR"
    WORK=$(cd "$FUZZ_DIR" && pwd)
else
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    trap 'exit 2' HUP INT TERM
fi

# --- building ------------------------------------------------------------

# compile TARGET OUT MUTANT COMPILER...: what MUTANT has replaces what the
# source has; "" for none.
compile() {
    local target=$1 out=$2 mutant=$3 file=$SOURCE/Python/tracemalloc_$1.c
    shift 3
    if [ -n "$mutant" ] && [ -f "$mutant/${file##*/}" ]; then
        file=$mutant/${file##*/}
    fi
    "$@" -std=c11 -g -O1 -UNDEBUG -DPy_BUILD_CORE \
        -Wall -Wextra -Wno-unused-parameter \
        -fsanitize=address,undefined -fno-sanitize-recover=all \
        ${mutant:+"-I$mutant"} \
        -I"$SOURCE/Include" -I"$SOURCE/Include/internal" -I"$BUILD" \
        -o "$out" "$HERE/fuzz_$target.c" "$file"
}

# Comparisons are not traced: keys are made to collide as it is, and it would
# take most of the time.
compile_fuzzer() {
    compile "$1" "$2" "$3" "$CLANG" -fsanitize=fuzzer \
        -fno-sanitize-coverage=trace-cmp
}

need_libfuzzer() {
    local source='int LLVMFuzzerTestOneInput(const char *data, long size);
        int LLVMFuzzerTestOneInput(const char *data, long size)
        { return data == 0 && size == 1; }'
    "$CLANG" -fsanitize=fuzzer,address,undefined -x c -o "$WORK/try" - \
        <<<"$source" >/dev/null 2>&1 ||
        die "cannot fuzz without clang and its libFuzzer (Debian: clang and\
 libclang-rt-dev); 'fuzz.sh $BUILD replay' needs neither."
    rm -f "$WORK/try"
}

# --- corpus: a text file with one input a line, in hexadecimal ------------

# unpack TARGET DIRECTORY
unpack() {
    local line n=0
    mkdir -p "$2"
    while read -r line; do
        case $line in '' | '#'*) continue ;; esac
        n=$((n + 1))
        # shellcheck disable=SC2001,SC2059 # it becomes \x.. alone
        printf "$(sed 's/../\\x&/g' <<<"$line")" \
            >"$2/$1-$(printf %02d "$n")"
    done <"$HERE/corpus/$1.txt"
}

# pack TARGET FILE...
pack() {
    local target=$1 file
    shift
    echo "# Inputs of fuzz_$target.c, made by fuzz.sh --minimise."
    for file; do
        od -An -v -tx1 "$file" | tr -d ' \n'
        echo
    done | awk '{print length($0), $0}' | sort -k1n -k2 | cut -d ' ' -f 2
}

# --- running -------------------------------------------------------------

failed=0

replay() {
    local target
    command -v "$CC" >/dev/null || die "cannot replay without $CC; set CC."
    for target in $TARGETS; do
        compile "$target" "$WORK/replay-$target" "" \
            "$CC" "$HERE/replay.c" ||
            die "fuzz_$target.c cannot be compiled by $CC."
        rm -rf "$WORK/$target-inputs"
        unpack "$target" "$WORK/$target-inputs"
        if "$WORK/replay-$target" "$WORK/$target-inputs"/* \
            >"$WORK/$target.log" 2>&1
        then
            echo "$target: $(wc -l <"$WORK/$target.log") inputs replayed"
        else
            tail -n 40 "$WORK/$target.log" >&2
            echo "fuzz.sh: fuzz_$target fails; see above for the input." >&2
            failed=1
        fi
    done
}

# fuzz TARGET: into $WORK/TARGET-inputs
fuzz() {
    local target=$1 log=$WORK/$1.log
    compile_fuzzer "$target" "$WORK/fuzz-$target" "" ||
        die "fuzz_$target.c cannot be compiled by $CLANG."
    if [ -f "$HERE/corpus/$target.txt" ]; then
        unpack "$target" "$WORK/$target-inputs"
    fi
    mkdir -p "$WORK/$target-inputs"
    # Without a corpus short inputs come first, and so the longer ones are
    # made of what has proved to be of interest.
    if nice -n 19 "$WORK/fuzz-$target" -max_total_time="$SECS" \
        -max_len=$MAX_LENGTH -len_control=20 -timeout=20 \
        -print_final_stats=1 -artifact_prefix="$PWD/fuzz_$target-" \
        "$WORK/$target-inputs" >"$log" 2>&1
    then
        awk -v target="$target" '
            /DONE/ { edges = $4 }
            /number_of_executed_units/ { runs = $2 }
            /average_exec_per_sec/ { rate = $2 }
            END { print target ": " runs " inputs run, " rate \
                  " a second, " edges " edges reached" }' "$log"
    else
        grep -v '^[#"]' "$log" | tail -n 40 >&2
        echo "fuzz.sh: fuzz_$target has found a failure; see above." >&2
        failed=1
    fi
}

# The fewest inputs that reach every edge, then those that reach most of them
# another number of times.
minimise() {
    local target=$1 least=$WORK/$1-least counters files
    rm -rf "$least"
    mkdir "$least"
    for counters in 0 1; do
        nice -n 19 "$WORK/fuzz-$target" -set_cover_merge=1 \
            -use_counters=$counters "$least" "$WORK/$target-inputs" \
            >"$WORK/$target.log" 2>&1 ||
            die "the corpus of $target cannot be minimised." 1
    done
    # In the order in which they were chosen.
    mapfile -t files < <(cd "$least" && ls -tr)
    mkdir -p "$HERE/corpus"
    (cd "$least" && pack "$target" "${files[@]:0:MAX_FILES}") \
        >"$HERE/corpus/$target.txt"
    echo "corpus/$target.txt: $(grep -vc '^#' "$HERE/corpus/$target.txt")" \
        "of ${#files[@]} inputs," \
        "$(wc -c <"$HERE/corpus/$target.txt") bytes"
}

# What has the run whose log it is died of?
reason() {
    sed -n -e 's/^[^ ]*fuzz_[a-z]*\.c:[0-9]*: /model: /p' \
        -e 's/.*Assertion `\(.*\)'"'"' failed.*/assertion: \1/p' \
        -e 's/.*runtime error: /sanitizer: /p' \
        -e 's/.*ERROR: AddressSanitizer: \([^ ]*\).*/sanitizer: \1/p' \
        -e 's/.*ERROR: LeakSanitizer.*/sanitizer: leak/p' \
        -e 's/.*ERROR: libFuzzer: timeout.*/endless loop/p' "$1" |
        head -n 1 | cut -c 1-60
}

# A mutant is to be found by replaying the corpus, and from nothing.  What
# finds one that the corpus misses is added to it.
mutants() {
    local number target name mutant=$WORK/mutant log=$WORK/mutant.log
    local replayed start seconds found
    "$PYTHON" -c '' 2>/dev/null || die "mutants need Python; set PYTHON."
    "$PYTHON" "$HERE/mutants.py" list >"$WORK/mutants" || die "mutants.py fails."
    printf '%2s  %-6s  %-48s  %-6s  %7s\n' '' target bug corpus seconds
    while IFS=$'\t' read -r number target name; do
        case " $TARGETS " in *" $target "*) ;; *) continue ;; esac
        rm -rf "$mutant"
        "$PYTHON" "$HERE/mutants.py" make "$number" "$SOURCE" "$mutant" ||
            die "mutant $number cannot be made."
        compile_fuzzer "$target" "$WORK/fuzz-mutant" "$mutant" \
            >"$log" 2>&1 || die "mutant $number cannot be compiled."
        rm -rf "$WORK/$target-unpacked" "$WORK/mutant-inputs"
        mkdir "$WORK/mutant-inputs"
        unpack "$target" "$WORK/$target-unpacked"
        replayed=found
        if nice -n 19 "$WORK/fuzz-mutant" -timeout=5 \
            -artifact_prefix="$WORK/corpus-" "$WORK/$target-unpacked"/* \
            >"$log" 2>&1
        then
            replayed=MISSED
            failed=1
        fi
        start=$(date +%s%N)
        if nice -n 19 "$WORK/fuzz-mutant" -max_total_time="$SECS" \
            -max_len=$MAX_LENGTH -len_control=20 -timeout=5 \
            -artifact_prefix="$WORK/mutant-" "$WORK/mutant-inputs" \
            >"$log" 2>&1
        then
            seconds=MISSED
            failed=1
        else
            seconds=$((($(date +%s%N) - start) / 100000000))
            seconds=$((seconds / 10)).$((seconds % 10))
            found=("$WORK"/mutant-*-*)
            if [ "$replayed" = MISSED ] && [ -f "${found[0]}" ]; then
                pack "$target" "$WORK/$target-unpacked"/* "${found[0]}" \
                    >"$WORK/corpus.txt"
                cp "$WORK/corpus.txt" "$HERE/corpus/$target.txt"
                replayed=added
            fi
        fi
        printf '%2d  %-6s  %-48s  %-6s  %7s  %s\n' "$number" "$target" \
            "$name" "$replayed" "$seconds" "$(reason "$log")"
        rm -f "$WORK"/mutant-*-* "$WORK"/corpus-*-*
    done <"$WORK/mutants"
}

case $mode in
replay)
    replay
    ;;
fuzz | minimise)
    need_libfuzzer
    for target in $TARGETS; do
        fuzz "$target"
        if [ "$mode" = minimise ] && [ "$failed" = 0 ]; then
            minimise "$target"
        fi
    done
    ;;
mutants)
    need_libfuzzer
    mutants
    ;;
esac
exit "$failed"
