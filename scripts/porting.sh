#!/usr/bin/env bash
# porting.sh REPO: which patches does another CPython take, and which files of
# the others need porting?  Run by check-series.sh for CPYTHON= of a version
# that is not the series' own.
#
# REPO is a git repository of that source, and is changed.  A patch that does
# not apply as a whole is applied file by file, as far as that goes, for those
# that build upon it.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

repo=$1
LOG=$LOGS/porting.log
: > "$LOG"
committer
export GIT_AUTHOR_NAME=$GIT_COMMITTER_NAME GIT_AUTHOR_EMAIL=$GIT_COMMITTER_EMAIL

# try FILE [OPTION...]: apply it to index and files, or change nothing.
try() {
    g -C "$repo" apply --index --whitespace=nowarn "${@:2}" "$1" >>"$LOG" 2>&1 </dev/null
}

# whole PATH: what to say of a file of CPython's that the series rewrites.
whole() {
    if grep -qxF -- "$1" "$PATCHES/OWNED"; then echo ' (the series replaces it as a whole)'; fi
}

total=0
open=0
while IFS= read -r file; do
    total=$((total + 1))
    name=${file##*/}
    if try "$file"; then
        printf '      applies: %s\n' "$name"
    elif try "$file" -C0; then
        # A line next to one of ours is another one there.
        printf '      applies with -C0: %s\n' "$name"
    else
        open=$((open + 1))
        printf '      needs porting: %s\n' "$name"
        while IFS=$'\t' read -r _ _ path; do
            try "$file" -C0 --include="$path" || printf '          %s%s\n' "$path" "$(whole "$path")"
        done < <(g apply --numstat "$file" 2>>"$LOG")
    fi
    g -C "$repo" commit -q --allow-empty -m "$name" >>"$LOG" 2>&1 </dev/null
done < <(patch_files)
[ "$open" = 0 ] || die "$open of $total patches need porting; InternalDocs/tracemalloc.md ends with what became of CPython's parts that they touch."
