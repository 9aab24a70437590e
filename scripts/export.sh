#!/usr/bin/env bash
# export.sh: write the commits of build/cpython out as patches/ and folders.
#
# patches/0001-*.patch ... are the commits since the tag 'pristine', one file
# each, the same to the byte with any git; the cover letter stays as it is.
# The folders named like CPython's (Lib, Modules, ...) get every file the
# series owns whole: those it adds and those listed in patches/OWNED (one path
# a line, '#' starts a comment), as they are in git.  Everything is made and
# checked aside first; what is no longer part of it is removed.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/owned.sh
. "$ROOT/scripts/owned.sh"

need git
[ -d "$TREE/.git" ] || die "build/cpython is not there, so there is nothing to export; run 'make tree' first."
[ "$(g -C "$TREE" rev-parse -q --verify 'pristine^{tree}')" = "$PRISTINE_TREE" ] ||
    die "the tag 'pristine' of build/cpython is missing or moved; restore it ('git tag -f pristine COMMIT') before the export."
! tree_in_progress ||
    die "a rebase, am, merge, cherry-pick or bisect is in progress in build/cpython; finish or abort it before the export."
[ "$(tree_branch)" = "$BRANCH" ] ||
    die "build/cpython is not on its branch $BRANCH; run 'git -C build/cpython checkout $BRANCH' before the export."
! tree_dirty ||
    die "build/cpython has changes not committed ($(g -C "$TREE" --no-optional-locks status --porcelain | head -n 3 | cut -c4- | paste -sd' ')); commit or remove them before the export."
g -C "$TREE" merge-base --is-ancestor pristine HEAD ||
    die "the branch $BRANCH of build/cpython does not start at the tag 'pristine'; rebase it onto that before the export."
[ -z "$(g -C "$TREE" rev-list --merges -n 1 pristine..HEAD)" ] ||
    die "the branch $BRANCH of build/cpython has a merge commit, which no patch can hold; rebase it before the export."

make_tmp
mkdir "$tmp/patches" "$tmp/folders"
g -C "$TREE" format-patch -q -o "$tmp/patches" \
    --numbered --start-number=1 --zero-commit --no-signature --no-cover-letter --no-attach --no-thread \
    --no-base --no-notes --full-index --binary --no-ext-diff --no-textconv --no-renames --no-color \
    --diff-algorithm=myers --indent-heuristic --src-prefix=a/ --dst-prefix=b/ -U3 \
    -p --stat=72 --summary pristine..HEAD
head=$(tree_head)
count=$(find "$tmp/patches" -name '*.patch' | wc -l)

# The patches must lead to this very tree again.
g -C "$TREE" worktree prune
g -C "$TREE" worktree add -q --detach "$tmp/again" pristine
committer
if [ "$count" != 0 ] && ! g -C "$tmp/again" am --no-3way --keep-non-patch --whitespace=nowarn -q "$tmp/patches"/*.patch >"$tmp/am.log" 2>&1 </dev/null; then
    cp "$tmp/am.log" "$LOGS/export.log"
    die_log "$LOGS/export.log" "the exported patches do not apply again; look at the named commit's message and content"
fi
[ "$(g -C "$tmp/again" rev-parse 'HEAD^{tree}')" = "$(g -C "$TREE" rev-parse 'HEAD^{tree}')" ] ||
    die "the exported patches do not give the same files again; look for commits whose message holds a diff or a '---' line."
rm -rf "$tmp/again"
g -C "$TREE" worktree prune

# read_owned stops on a bad patches/OWNED.
read_owned "$TREE" "$head" > "$tmp/owned"
write_owned "$TREE" "$head" "$tmp/owned" "$tmp/folders"

# From here on nothing can fail but the disk; do not stop half-way.
trap '' HUP INT TERM
mkdir -p "$PATCHES"
changed=0

# sync FROM-DIR TO-DIR PATH: make TO-DIR/PATH equal, in one go.
sync() {
    if ! same_file "$1/$3" "$2/$3"; then
        mkdir -p "$(dirname "$2/$3")"
        rm -rf "$2/$3.new"
        cp -p "$1/$3" "$2/$3.new"
        mv -T "$2/$3.new" "$2/$3"
        changed=$((changed + 1))
        printf 'wrote %s\n' "${2#"$ROOT"}/$3" | sed 's,^wrote /,wrote ,'
    fi
}

while IFS= read -r file; do
    if [ ! -f "$tmp/patches/${file##*/}" ]; then
        rm -f "$file"
        changed=$((changed + 1))
        echo "removed patches/${file##*/}"
    fi
done < <(patch_files)
for file in "$tmp/patches"/*.patch; do
    if [ -f "$file" ]; then sync "$tmp/patches" "$PATCHES" "${file##*/}"; fi
done
while IFS= read -r file; do
    if ! grep -qxF -- "$file" "$tmp/owned"; then
        rm -f "${ROOT:?}/$file"
        changed=$((changed + 1))
        echo "removed $file"
        rmdir -p --ignore-fail-on-non-empty "$(dirname "$file")"
    fi
done < <(folder_files)
while IFS= read -r file; do
    sync "$tmp/folders" "$ROOT" "$file"
done < "$tmp/owned"
write_stamp "$(patches_hash)" "$head"

printf 'exported %d patches and %d whole files, %d changed\n' "$count" "$(wc -l < "$tmp/owned")" "$changed"
if [ ! -f "$COVER" ]; then
    echo "note: there is no patches/${COVER##*/} yet, it is written by hand"
fi
