#!/usr/bin/env bash
# tree.sh: make sure that build/cpython is there with the series applied.
#
# If it is not there it is made from the pristine source and patches/*.patch,
# aside, and moved in place when complete.  If it is there and patches/ has not
# changed since it was last applied or exported, nothing is touched: commits
# and edits in progress stay.  If patches/ has changed, the tree is moved to
# the new series when it holds no work of its own, and refused otherwise.
#
# To another VERSION than its own the series is applied with the three-way merge
# of git, for which the files that it is made against are fetched, too.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need git make gcc
check_config "${CONFIG:-release}"
mkdir -p "$LOGS"

# am REPO LOG FILE OPTION...: git am of one patch, or nothing.
am() {
    g -C "$1" am --keep-non-patch --whitespace=nowarn -q "${@:4}" "$3" >>"$2" 2>&1 </dev/null && return
    g -C "$1" am --abort >/dev/null 2>&1 || :
    return 1
}

# apply REPO LOG: git am of the whole series on REPO's current HEAD.
apply() {
    local file
    committer
    : > "$2"
    if [ "$VERSION" != "$BASE" ]; then
        # The tests see to it that what -C0 finds is the right place.
        add_base "$1"
    fi
    while IFS= read -r file; do
        am "$1" "$2" "$file" --no-3way && continue
        if [ "$VERSION" != "$BASE" ]; then
            am "$1" "$2" "$file" --3way && continue
            am "$1" "$2" "$file" --no-3way -C0 && continue
        fi
        die_log "$2" "${file#"$ROOT"/} does not apply to CPython $VERSION; repair patches/, or restore it with 'git checkout patches'"
    done < <(patch_files)
}

# add_base REPO: the files that the series is made against, as a tag.
add_base() {
    g -C "$1" rev-parse -q --verify "refs/tags/pristine-$BASE" >/dev/null && return
    VERSION=$BASE CPYTHON='' "$ROOT/scripts/import.sh" "$tmp/base" || give_up
    g -C "$1" fetch -q --no-tags "$tmp/base" "refs/tags/pristine:refs/tags/pristine-$BASE" ||
        die "the files of CPython $BASE cannot be added to the tree; is the disk full?"
    rm -rf "$tmp/base"
}

count=$(patch_files | wc -l)
hash=$(patches_hash)

if [ ! -e "$TREE" ]; then
    make_tmp
    step "source (CPython $VERSION${CPYTHON:+ from $CPYTHON})"
    "$ROOT/scripts/import.sh" "$tmp/cpython" || give_up
    step_done verified
    step "patches ($count)"
    apply "$tmp/cpython" "$LOGS/apply.log"
    write_stamp "$hash" "$(g -C "$tmp/cpython" rev-parse HEAD)" "$tmp/cpython/.git/${STAMP##*/}"
    mv -T "$tmp/cpython" "$TREE"
    step_done applied
    exit 0
fi

step "source (CPython $VERSION)"
[ "$(g -C "$TREE" rev-parse -q --verify 'pristine^{tree}' 2>/dev/null)" = "$PRISTINE_TREE" ] ||
    die "build/cpython is not the tree these scripts made (its tag 'pristine' is missing or differs); move it away and run make again."
if [ -n "${CPYTHON:-}" ]; then
    note "build/cpython exists and is used, CPYTHON= is not looked at ('make clean' removes the tree)"
fi
step_done present

step "patches ($count)"
if [ "$hash" = "$(stamp_hash)" ]; then
    if [ "$(tree_head)" != "$(stamp_head)" ] || tree_dirty; then
        step_done "build/cpython has work not exported yet, used as it is"
    else
        step_done "applied before"
    fi
    exit 0
fi
if tree_in_progress || tree_dirty || [ "$(tree_branch)" != "$BRANCH" ] || [ "$(tree_head)" != "$(stamp_head)" ]; then
    die "patches/ has changed while build/cpython holds work of its own; keep the work with 'make export' (it overwrites patches/), or drop it by removing build/cpython, and run make again."
fi
# Beside the tree first, so that a failure leaves it as it was, and so that
# only files which really change get a new time.
g -C "$TREE" worktree prune
make_tmp
g -C "$TREE" worktree add -q --detach "$tmp/cpython" pristine
if ! (apply "$tmp/cpython" "$LOGS/apply.log"); then
    rm -rf "$tmp/cpython"
    g -C "$TREE" worktree prune
    give_up
fi
head=$(g -C "$tmp/cpython" rev-parse HEAD)
rm -rf "$tmp/cpython"
g -C "$TREE" worktree prune
g -C "$TREE" reset -q --keep "$head"
write_stamp "$hash" "$head"
step_done "patches/ had changed, applied anew"
