#!/usr/bin/env bash
# patch.sh: the whole series as one file, build/tracemalloc-VERSION.patch.
#
# It applies to the unpacked release tarball with 'patch -p1', and so with
# 'pyenv install --patch'.  In the tarball the project files of Windows have CRLF
# line ends, and in git they have not; so the file is a diff of files as they
# are when checked out.  It is tried on such files before it is left there.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need git patch
[ "$(g -C "$TREE" rev-parse -q --verify 'pristine^{tree}')" = "$PRISTINE_TREE" ] ||
    die "the tag 'pristine' of build/cpython is missing or moved; remove build/cpython and run this again."
! tree_dirty || die "build/cpython has changes that are not committed; commit or remove them first."

file=tracemalloc-$VERSION.patch
step "build/$file"
make_tmp
# Checked out, so that the attributes of the tree give the line ends.
for side in a b; do
    g clone -q --shared --no-checkout --template= "$TREE" "$tmp/$side"
    write_attributes "$tmp/$side"
done
g -C "$tmp/a" checkout -q --detach pristine
g -C "$tmp/b" checkout -q --detach "$(tree_head)"
rm -rf "$tmp/a/.git" "$tmp/b/.git"
status=0
(cd "$tmp" && TZ=UTC g diff --no-index --binary --no-renames --no-prefix --no-color --no-ext-diff a b) \
    > "$tmp/$file" || status=$?
[ "$status" = 1 ] || die "git cannot compare the files with and without the series (exit status $status)."
if grep -q '^GIT binary patch' "$tmp/$file"; then
    die "the series changes a binary file, which patch cannot do."
fi
(cd "$tmp/a" && patch -p1 -s < "../$file") >"$LOGS/patch.log" 2>&1 </dev/null ||
    die_log "$LOGS/patch.log" "the file does not apply with 'patch -p1'"
diff -r "$tmp/a" "$tmp/b" >"$LOGS/patch.log" 2>&1 ||
    die_log "$LOGS/patch.log" "with the file applied the source differs from build/cpython"
mv -f "$tmp/$file" "$BUILD/$file"
step_done "$(grep -c '^diff ' "$BUILD/$file") files, applies with 'patch -p1'"
