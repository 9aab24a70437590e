#!/usr/bin/env bash
# import.sh DIR: make DIR a git repository whose only commit, tagged
# 'pristine', is the unchanged CPython source (fetch.sh says from where).
#
# The commit is the same to the bit wherever it is made.  Its tree is held
# against the pinned one, whatever the source was; for a differing one the
# directories that differ are named from pristine-VERSION.dirs, if that is there
# (the output of 'git ls-tree -rd').  ANY_VERSION=1 takes 3.13 or later from
# CPYTHON= unpinned.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dest=$1
need git
"$ROOT/scripts/fetch.sh" "$dest" || give_up

version=$(sed -n 's/^#define PY_VERSION[[:space:]]*"\(.*\)"$/\1/p' "$dest/Include/patchlevel.h")

g init -q --template= "$dest"
write_attributes "$dest"
g -C "$dest" symbolic-ref HEAD "refs/heads/$BRANCH"
g -C "$dest" config core.autocrlf false
g -C "$dest" config core.safecrlf false
g -C "$dest" config core.fileMode true
g -C "$dest" config gc.auto 0
git config user.name >/dev/null || g -C "$dest" config user.name 'CPython builder'
git config user.email >/dev/null || g -C "$dest" config user.email 'builder@localhost'

g -C "$dest" add -f -A .
tree=$(g -C "$dest" write-tree)

if [ "$version" = "$VERSION" ] && [ "$tree" != "$PRISTINE_TREE" ]; then
    # The deepest directories with a change in them, five at most.
    differ=
    [ ! -f "$ROOT/scripts/pristine-$VERSION.dirs" ] || differ=$(g -C "$dest" ls-tree -rd "$tree" | diff - "$ROOT/scripts/pristine-$VERSION.dirs" |
        sed -n 's/^[<>].*\t//p' | sort -ru |
        awk 'index(prev, $0 "/") != 1 { out = out (n++ ? ", " : "") $0; if (n == 5) exit }
             { prev = $0 } END { print out }') || :
    die "${CPYTHON:-the downloaded source} is not the unchanged CPython $VERSION, the differences are in ${differ:-some of its files}; use an unchanged v$VERSION or give no CPYTHON=."
fi

commit=$(GIT_AUTHOR_NAME='CPython' GIT_AUTHOR_EMAIL='cpython@localhost' \
    GIT_COMMITTER_NAME='CPython' GIT_COMMITTER_EMAIL='cpython@localhost' \
    GIT_AUTHOR_DATE='2025-06-11T00:00:00Z' GIT_COMMITTER_DATE='2025-06-11T00:00:00Z' \
    g -C "$dest" commit-tree "$tree" -m "CPython $version, unchanged")
g -C "$dest" update-ref "refs/heads/$BRANCH" "$commit"
g -C "$dest" update-ref refs/tags/pristine "$commit"
