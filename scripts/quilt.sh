#!/usr/bin/env bash
# quilt.sh SOURCE DIR: the series as patches for quilt, on top of a Debian source
# package that was unpacked, with Debian's patches applied, in SOURCE.
#
# Git moves the commits of build/cpython to Debian's files with its three-way
# merge, and the patches are made anew there, so that none needs fuzz.  They go to
# the new directory DIR, and below it the files as they have to be in the end are
# in DIR/result.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

source=$1
dest=$2
need git
LOG=$LOGS/quilt.log
: > "$LOG"
committer
make_tmp
repo=$tmp/repo

# raw ...: git with the same files, but with line ends as patch sees them: the
# project files of Windows have CRLF.
raw() { g --git-dir="$tmp/raw" --work-tree="$repo" "$@"; }

# record COMMIT: check it out of the one repository, and commit it to the other.
record() {
    g -C "$repo" checkout -q --detach "$1"
    raw add -A -f .
    GIT_AUTHOR_NAME=$(g -C "$repo" log -1 --format=%an "$1") GIT_AUTHOR_EMAIL=$(g -C "$repo" log -1 --format=%ae "$1") \
    GIT_AUTHOR_DATE=$(g -C "$repo" log -1 --format=%ad "$1") \
        raw commit -q --cleanup=verbatim -F <(g -C "$repo" log -1 --format=%B "$1")
}

g clone -q --shared --no-checkout --template= "$TREE" "$repo"
write_attributes "$repo"
g -C "$repo" update-ref --no-deref HEAD "$(g -C "$TREE" rev-parse pristine)"
tar -c -C "$source" --exclude=./debian --exclude=./.pc . | tar -x -C "$repo"
export GIT_AUTHOR_NAME=$GIT_COMMITTER_NAME GIT_AUTHOR_EMAIL=$GIT_COMMITTER_EMAIL
g -C "$repo" add -A -f .
g -C "$repo" commit -q -m "Debian's files"
base=$(g -C "$repo" rev-parse HEAD)
for commit in $(g -C "$TREE" rev-list --reverse pristine.."$(tree_head)"); do
    g -C "$repo" cherry-pick --allow-empty "$commit" >>"$LOG" 2>&1 </dev/null || {
        g -C "$repo" diff >>"$LOG" 2>&1 || :
        die_log "$LOG" "the patch '$(g -C "$TREE" log -1 --format=%s "$commit")' conflicts with Debian's patches; it needs a version of its own for them"
    }
done
head=$(g -C "$repo" rev-parse HEAD)

g init -q --bare --template= "$tmp/raw"
mkdir -p "$tmp/raw/info"
echo '* -text -ident -filter -working-tree-encoding' > "$tmp/raw/info/attributes"
for commit in "$base" $(g -C "$repo" rev-list --reverse "$base..$head"); do
    record "$commit"
done
mkdir -p "$tmp/out"
raw format-patch -q -N --subject-prefix= --zero-commit --no-signature --no-renames --no-stat \
    -o "$tmp/out" "$(raw rev-list --max-parents=0 HEAD)"
rm -rf "$repo/.git"
mv -T "$repo" "$tmp/out/result"
mv -T "$tmp/out" "$dest"
