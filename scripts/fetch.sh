#!/usr/bin/env bash
# fetch.sh DIR: put the pristine CPython source into the new directory DIR.
#
# Sources, the first that works: CPYTHON= (a checkout, an unpacked tarball or a
# tarball; it is only read), Debian's source package of the same release, and
# upstream's git tag.  All end as the same files: what the release tarball has
# without Misc/NEWS, which is generated and in no git tree, and without what is
# in git only (top-level dot files of the hosting service, Misc/NEWS.d).
# A tarball is held against a pinned sha256; import.sh then holds the files
# against a pinned git tree.  ANY_VERSION=1 takes 3.13 or later from CPYTHON=.
# Downloads stay in build/cache and are verified each time they are used.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/mirror.sh
. "$ROOT/scripts/mirror.sh"

dest=$1
need git tar sha256sum
mkdir -p "$CACHE" "$LOGS"
LOG=$LOGS/fetch.log
: > "$LOG"

sha256_of() { sha256sum < "$1" | cut -d' ' -f1; }

APT_HELPER=/usr/lib/apt/apt-helper

# decompress FILE: by its magic, with whatever this machine has.
decompress() {
    case $(od -An -tx1 -N6 "$1" | tr -d ' \n') in
    fd377a585a00)
        if command -v xz >/dev/null 2>&1; then xz -dc < "$1"
        elif [ -x "$APT_HELPER" ]; then
            # It goes by the name's ending.
            case $1 in
            *.xz) "$APT_HELPER" cat-file "$1" ;;
            *) ln -s "$(readlink -f "$1")" "$tmp/source.xz" && "$APT_HELPER" cat-file "$tmp/source.xz" ;;
            esac
        else
            echo "nothing here can decompress $1, xz (xz-utils) is missing" >&2
            return 1
        fi ;;
    1f8b*) gzip -dc < "$1" ;;
    425a68*) bzip2 -dc < "$1" ;;
    *) cat "$1" ;;
    esac
}

# unpack FILE: a tarball with one top directory into $dest.
unpack() {
    mkdir -p "$dest"
    decompress "$1" 2>>"$LOG" | tar -x -C "$dest" --strip-components=1 --no-same-owner 2>>"$LOG" ||
        die_log "$LOG" "$1 cannot be unpacked as a tarball of CPython; look at the lines above, or give another CPYTHON= or none"
}

# canonical DIR: drop what only one kind of source has.
canonical() {
    local name
    for name in "$1"/.[!.]*; do
        case ${name##*/} in
        .coveragerc|.devcontainer|.editorconfig|.mailmap|.pre-commit-config.yaml|.readthedocs.yml) ;;
        *) rm -rf "$name" ;;
        esac
    done
    rm -rf "$1/Misc/NEWS" "$1/Misc/NEWS.d"
    find "$1" -name __pycache__ -type d -prune -exec rm -rf {} +
}

check_version() {
    local found=
    if [ -f "$dest/Include/patchlevel.h" ]; then
        found=$(sed -n 's/^#define PY_VERSION[[:space:]]*"\(.*\)"$/\1/p' "$dest/Include/patchlevel.h")
    fi
    [ -n "$found" ] || die "$1 is not a CPython source (it has no Include/patchlevel.h); give another CPYTHON= or none."
    [ "$found" != "$VERSION" ] || return 0
    if [ -n "${ANY_VERSION:-}" ]; then
        case $found in
        3.1[3-9].*|3.[2-9][0-9].*|[4-9].*)
            note "$1 is CPython $found, for which nothing is pinned: its files are taken as they are."
            return 0 ;;
        esac
        die "$1 is CPython $found and the series is for CPython 3.13; give a CPYTHON= of 3.13 or later."
    fi
    die "$1 is CPython $found and the series is against CPython $VERSION; give a CPYTHON= of that version or none."
}

from_user() {
    local top
    [ -e "$1" ] || die "CPYTHON=$1 does not exist; give a CPython checkout, a tarball or nothing."
    [ -r "$1" ] || die "CPYTHON=$1 cannot be read; give a CPython checkout, a tarball or nothing."
    if [ -f "$1" ]; then
        case ${1##*/} in
        "$TARBALL")
            [ "$(sha256_of "$1")" = "$TARBALL_SHA256" ] ||
                die "$1 is not the released $TARBALL (its sha256 differs); download it again or give no CPYTHON=." ;;
        esac
        unpack "$1"
    elif [ -e "$1/.git" ]; then
        git -C "$1" rev-parse -q --verify 'HEAD^{commit}' >/dev/null 2>>"$LOG" ||
            die_log "$LOG" "git cannot read the checkout $1; repair it or give another CPYTHON= or none"
        top=$(git --no-optional-locks -C "$1" status --porcelain --untracked-files=no 2>>"$LOG" | head -n 1)
        [ -z "$top" ] ||
            die "the checkout $1 has uncommitted changes (first: '${top#???}'); commit or stash them there, or give no CPYTHON=."
        mkdir -p "$dest"
        (cd "$1" && git -c core.autocrlf=false -c core.eol=lf archive --format=tar HEAD) 2>>"$LOG" |
            tar -x -C "$dest" --no-same-owner 2>>"$LOG" ||
            die_log "$LOG" "git archive failed in $1; repair it or give another CPYTHON= or none"
    else
        mkdir -p "$dest"
        [ -f "$1/Include/patchlevel.h" ] ||
            die "$1 is not a CPython source (it has no Include/patchlevel.h); give another CPYTHON= or none."
        (cd "$1" && tar -c --exclude=__pycache__ .) | tar -x -C "$dest" --no-same-owner
    fi
    check_version "$1"
    canonical "$dest"
}

# from_debian: put the verified release tarball into the cache.
from_debian() {
    local uri apt=$tmp/apt file suite package key
    command -v apt-get >/dev/null 2>&1 || { echo "no apt-get here" >>"$LOG"; return 1; }
    uri=$(pick_mirror)
    [ -n "$uri" ] || { echo "no Debian mirror among the apt sources" >>"$LOG"; return 1; }
    key=$(debian_keyring)
    mkdir -p "$apt"/{lists/partial,cache/archives/partial,download}
    for suite in $SUITES; do
        printf 'deb-src %s%s %s main\n' "${key:+[signed-by=$key] }" "$uri" "$suite"
    done > "$apt/sources.list"
    # Read after the machine's own apt.conf (which may name a proxy); nothing
    # outside $apt is written and none of its hooks is run.
    cat > "$apt/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "-";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::State::extended_states "$apt/extended_states";
Dir::Cache "$apt/cache";
Dir::Log "$apt";
APT::Sandbox::User "$(id -un)";
Acquire::Retries "3";
CONF
    apt-get -q -c "$apt/apt.conf" update </dev/null >>"$LOG" 2>&1 || return 1
    package=$(apt-cache -c "$apt/apt.conf" showsrc --only-source python3.13 2>>"$LOG" |
        sed -n "s/^Version: \($VERSION-[^ ]*\)$/python3.13=\1/p" | tail -n 1)
    [ -n "$package" ] || { echo "Debian has no python3.13 $VERSION in $SUITES" >>"$LOG"; return 1; }
    (cd "$apt/download" &&
        apt-get -q -c "$apt/apt.conf" source -d --only-source --tar-only "$package" </dev/null) >>"$LOG" 2>&1 || return 1
    for file in "$apt/download"/*.orig.tar.xz; do
        [ -f "$file" ] || return 1
        if [ "$(sha256_of "$file")" != "$TARBALL_SHA256" ]; then
            echo "${file##*/} is not the pinned release" >>"$LOG"
            return 1
        fi
        mv -f "$file" "$CACHE/$TARBALL"
    done
}

# from_upstream: put a tarball of the release's git tag into the cache.
from_upstream() {
    git -c advice.detachedHead=false clone -q --bare --depth 1 --branch "v$VERSION" \
        "$UPSTREAM" "$tmp/upstream.git" </dev/null >>"$LOG" 2>&1 || return 1
    git -C "$tmp/upstream.git" -c core.autocrlf=false -c core.eol=lf archive --format=tar \
        --prefix="cpython/" -o "$tmp/upstream.tar" HEAD >>"$LOG" 2>&1 || return 1
    (cd "$tmp" && sha256sum upstream.tar) > "$tmp/upstream.sum"
    mv -f "$tmp/upstream.tar" "$CACHE/cpython-v$VERSION.tar"
    sed "s/upstream\.tar/cpython-v$VERSION.tar/" "$tmp/upstream.sum" > "$CACHE/cpython-v$VERSION.tar.sha256"
}

UPSTREAM=${UPSTREAM:-https://github.com/python/cpython.git}
export GIT_TERMINAL_PROMPT=0
make_tmp

if [ -n "${CPYTHON:-}" ]; then
    from_user "$CPYTHON"
    exit 0
fi

if [ -f "$CACHE/$TARBALL" ]; then
    if [ "$(sha256_of "$CACHE/$TARBALL")" != "$TARBALL_SHA256" ]; then
        note "the cached $TARBALL is damaged: fetched anew"
        rm -f "$CACHE/$TARBALL"
    fi
fi
if [ -f "$CACHE/cpython-v$VERSION.tar" ]; then
    if ! (cd "$CACHE" && sha256sum --status -c "cpython-v$VERSION.tar.sha256" 2>/dev/null); then
        note "the cached cpython-v$VERSION.tar is damaged: fetched anew"
        rm -f "$CACHE/cpython-v$VERSION.tar" "$CACHE/cpython-v$VERSION.tar.sha256"
    fi
fi
if [ -f "$CACHE/$TARBALL" ]; then :
elif [ -f "$CACHE/cpython-v$VERSION.tar" ]; then :
elif from_debian; then :
elif from_upstream; then :
else
    die_log "$LOG" "CPython $VERSION could be had neither as Debian's source package nor from $UPSTREAM; check the network, or give CPYTHON= a checkout at v$VERSION or $TARBALL"
fi

if [ -f "$CACHE/$TARBALL" ]; then
    unpack "$CACHE/$TARBALL"
else
    unpack "$CACHE/cpython-v$VERSION.tar"
fi
check_version "the downloaded source"
canonical "$dest"
