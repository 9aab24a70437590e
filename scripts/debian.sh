#!/usr/bin/env bash
# debian.sh: Debian 13's package python3.13 with the series.
#
# The series becomes patches for quilt (quilt.sh) after Debian's own, and the
# packages are built in a user space of Debian 13 (system.sh, as root): those for
# one architecture, as the others are documentation and tests; without profile
# and LTO, for time.  They are then installed where that is thrown away, and
# check-debian.py looks at them there.
#
# Leaves build/debian/*.deb, the source package (*.dsc and its files) and
# build/debian/patches.  Exit status 2: it is not possible on this machine.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/system.sh
. "$ROOT/scripts/system.sh"

OUT=$BUILD/debian
WORK=$BUILD/debian-work
LAYER=$BUILD/debian-layer       # over the user space, with what it takes to build
PROFILES=nocheck,nodoc
# Those of the interpreter, of a release and of a debug build.
INSTALL="libpython3.13-minimal libpython3.13-stdlib libpython3.13 python3.13-minimal python3.13 libpython3.13-dbg python3.13-dbg"
OPTIONS="nocheck nobench nopgo nolto parallel=$JOBS"

# at_work COMMAND...: run it in the user space, in build/debian-work as /work.
at_work() {
    inside "$WORK:/work" "$ROOT/scripts:/scripts:ro" -- env -C /work DEB_BUILD_OPTIONS="$OPTIONS" DEB_BUILD_PROFILES="${PROFILES/,/ }" "$@"
}

# prepared: what an interrupted run was about, which is then gone on with.
prepared() {
    { patches_hash; tree_head; echo "$OPTIONS $PROFILES"; cat "$ROOT/scripts/quilt.sh"; } | sha256sum
}

fetch_source() {
    local log=$LOGS/debian-source.log
    step "Debian's source package"
    rm -rf "$WORK"
    mkdir -p "$WORK"
    at_work sh -c 'apt-get -q update && apt-get -q source -d --only-source python3.13 && dpkg-source -x ./*.dsc python' \
        >"$log" 2>&1 || die_log "$log" "the source package of python3.13 could not be had; look at the lines above, and run the same again"
    version=$(at_work dpkg-parsechangelog -l python/debian/changelog -S Version)
    [ "${version%-*}" = "$VERSION" ] ||
        die "Debian's python3.13 is $version and the series is against $VERSION; port the series first."
    [ "$(sha256sum < "$WORK/python3.13_$VERSION.orig.tar.xz")" = "$TARBALL_SHA256  -" ] ||
        die "the tarball of Debian's python3.13 is not the release of CPython $VERSION (its sha256 differs)."
    rm "$WORK"/*.dsc "$WORK"/*.debian.tar.*
    step_done "$version"
}

# add_series: the patches, and an entry in the changelog.
add_series() {
    local log=$LOGS/debian-quilt.log patch count
    step "the series for quilt"
    rm -rf "$WORK/series"
    "$ROOT/scripts/quilt.sh" "$WORK/python" "$WORK/series" || give_up
    mkdir "$WORK/python/debian/patches/tracemalloc"
    for patch in "$WORK/series"/*.patch; do
        cp "$patch" "$WORK/python/debian/patches/tracemalloc"
        echo "tracemalloc/${patch##*/}" >> "$WORK/python/debian/patches/series"
    done
    committer
    {
        printf 'python3.13 (%s+tracemalloc1) UNRELEASED; urgency=medium\n\n' "$version"
        printf '  * Each interpreter has its own tracemalloc.\n\n'
        printf ' -- %s <%s>  %s\n\n' "$GIT_COMMITTER_NAME" "$GIT_COMMITTER_EMAIL" "$(date -R)"
        cat "$WORK/python/debian/changelog"
    } > "$WORK/changelog"
    mv "$WORK/changelog" "$WORK/python/debian/changelog"
    at_work env -C python QUILT_PATCHES=debian/patches quilt push -a --fuzz=0 >"$log" 2>&1 ||
        die_log "$log" "quilt cannot apply the series after Debian's patches"
    diff -r --exclude=.pc --exclude=debian "$WORK/python" "$WORK/series/result" >>"$log" 2>&1 ||
        die_log "$log" "what quilt has made of the series differs from what git has"
    # It sees to it that the patches make up all of the difference.
    at_work dpkg-source -b python >>"$log" 2>&1 ||
        die_log "$log" "dpkg-source cannot make a source package with the series"
    rm -rf "$WORK/series/result"
    count=$(patch_files | wc -l)
    step_done "$count patches, applied without fuzz"
}

# build: dpkg-buildpackage, telling what it has done so far.
build() {
    local log=$LOGS/debian-build.log part
    step "dpkg-buildpackage ($JOBS jobs, most of an hour)"
    if [ "$(cat "$WORK/.building" 2>/dev/null)" = "$(prepared)" ]; then
        set -- -nc
        note "goes on where it was interrupted"
    else
        : > "$log"
        prepared > "$WORK/.building"
    fi
    at_work env -C python dpkg-buildpackage -B -uc -us "$@" 2>&1 | tee -a "$log" |
        sed -un 's,^touch stamps/stamp-\(build-.*\|install\)$,\1,p' | while IFS= read -r part; do
            note "$part, $((SECONDS - STEP_START)) s"
        done || {
            # Whatever is half-written is not to be gone on with.
            rm -f "$WORK/.building"
            die_log "$log" "the packages cannot be built"
        }
    rm -rf "$OUT"
    mkdir -p "$OUT"
    rm "$WORK/.building"
    find "$WORK" -maxdepth 1 -type f -exec mv -t "$OUT" {} +
    mv -T "$WORK/series" "$OUT/patches"
    step_done "$(find "$OUT" -name '*.deb' | wc -l) packages"
}

# check: install them in a layer over the user space, and look at them there.
check() {
    local log=$LOGS/debian-check.log package files=()
    step "the packages, installed"
    : > "$log"
    make_tmp
    local LAYER_BELOW=$LAYER
    local LAYER=$tmp
    # What is there is Debian's own.
    if at_work python3.13 -I /scripts/check-debian.py >>"$log" 2>&1; then
        die "scripts/check-debian.py finds no fault with Debian's own package either, so it shows nothing."
    fi
    for package in $INSTALL; do
        files+=("/debian/$(cd "$OUT" && echo "${package}"_*.deb)")
    done
    # shellcheck disable=SC2016 # it is for the inner shell
    inside "$OUT:/debian:ro" "$ROOT/scripts:/scripts:ro" -- bash -ec '
        dpkg -i "$@"
        for python in python3.13 python3.13d; do "$python" -I /scripts/check-debian.py; done' bash "${files[@]}" \
        >>"$log" 2>&1 || die_log "$log" "the packages cannot be installed, or isolated interpreters do not trace in them"
    step_done "$(grep -c '^0 faults' "$log") builds of Python trace in isolated interpreters"
}

need_root debian
need git make gcc
[ "$VERSION" = "$BASE" ] || impossible "Debian 13 has CPython $BASE, not $VERSION; run this without VERSION=."
unset "${!PYTHON@}"
mkdir -p "$LOGS"

STEPS=8
STEP=$STEP_NO STEPS=$STEPS "$ROOT/scripts/tree.sh" || give_up
STEP_NO=2
make_system
add_packages "what python3.13 is built with" build-dep -P "$PROFILES" --arch-only python3.13
if [ "$(cat "$WORK/.building" 2>/dev/null)" = "$(prepared)" ]; then
    STEP_NO=$((STEP_NO + 2))
else
    fetch_source
    add_series
fi
build
check
rm -rf "$WORK"
echo "build/debian: $(cd "$OUT" && find . -name '*.deb' | wc -l) packages and their source"
