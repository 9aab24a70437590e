#!/usr/bin/env bash
# clean.sh: remove everything in build/ but the cached downloads.
#
# Refuses, before anything is removed, when build/cpython holds work that is
# in no patch: edits, commits since the last export, stashes, other branches; or
# when build/proof has results that 'make proof-summary' has not written down.
# KEEP_TREE=1 leaves build/cpython alone and removes the rest.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need git
if [ -d "$TREE/.git" ] && [ -z "${KEEP_TREE:-}" ]; then
    known=$(stamp_head)
    if tree_in_progress || tree_dirty ||
        [ -n "$(g -C "$TREE" rev-list -n 1 --branches --glob=refs/stash HEAD --not pristine ${known:+"$known"} 2>&1)" ]; then
        die "build/cpython holds work that is in no patch, nothing was removed; run 'make export' first, or keep the tree with 'make clean KEEP_TREE=1', or remove build/cpython yourself."
    fi
fi
[ -d "$BUILD" ] || exit 0
if [ -n "$(find "$BUILD/proof" -maxdepth 1 -name '*.json' -newer "$ROOT/scripts/proof-results.json" 2>/dev/null)" ]; then
    die "build/proof has results of 'make proof' that are nowhere else, nothing was removed; run 'make proof-summary' first, or remove build/proof yourself."
fi
for path in "$BUILD"/* "$BUILD"/.tmp.*; do
    case $path in
    "$CACHE") ;;
    "$TREE") if [ -z "${KEEP_TREE:-}" ]; then rm -rf "$path"; fi ;;
    # The user space of 'make packages' has nothing mounted in it that can be
    # seen here; should there be something, it is not to be emptied.
    *) rm -rf --one-file-system "$path" ;;
    esac
done
