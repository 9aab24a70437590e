# shellcheck shell=bash
# Sourced after common.sh: a user space of Debian 13 in build/system, made by
# debootstrap as root, for what is to be built and run with Debian's libraries
# and packages whatever this machine has.
# shellcheck disable=SC2034,SC2154 # variables of and for common.sh

# shellcheck source=scripts/mirror.sh
. "$ROOT/scripts/mirror.sh"

SYSTEM=$ROOT/build/system
SUITE=trixie            # Debian 13, whose Python is 3.13

# impossible SENTENCE: die with exit status 2, for nothing has failed.
impossible() {
    end_line
    printf 'error: %s\n' "$*" >&2
    REPORTED=1
    exit 2
}

# apart COMMAND...: run it where its mounts and its processes end with it,
# whatever ends it.
apart() {
    unshare --mount --propagation private --pid --fork --kill-child --mount-proc -- "$@"
}

# The shell stays as process 1, for only such a one ends children of others.
# shellcheck disable=SC2016 # it is for the inner shell
ENTER='set -e
system=$1 layer=$2 below=${3:+$3/upper:}
shift 3
if [ -n "$layer" ]; then
    mkdir -p "$layer"/{upper,work,root}
    mount -t overlay -o "lowerdir=$below$system,upperdir=$layer/upper,workdir=$layer/work" overlay "$layer/root"
    system=$layer/root
fi
mount -t proc proc "$system/proc"
while [ "$1" != -- ]; do
    IFS=: read -r from to mode <<<"$1"
    mkdir -p "$system/$to"
    mount --bind "$from" "$system/$to"
    [ "$mode" != ro ] || mount -o remount,bind,ro "$system/$to"
    shift
done
shift
status=0
chroot "$system" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    ${http_proxy:+"http_proxy=$http_proxy"} "$@" </dev/null || status=$?
exit "$status"'

# inside [FROM:TO[:ro]...] -- COMMAND...: run it in the user space, where the
# folders FROM of this machine are seen as TO.  If LAYER is set, what it changes
# in the user space itself goes to that folder, with LAYER_BELOW in between.
inside() {
    apart bash -c "$ENTER" inside "$SYSTEM" "${LAYER:-}" "${LAYER_BELOW:-}" "$@"
}

# need_root TARGET: stop where a user space can not be made.
need_root() {
    [ "$(id -u)" = 0 ] || impossible "'make $1' makes a user space of Debian 13, which only root can; run it as root."
    need unshare chroot mount
    apart true 2>/dev/null || impossible "'make $1' needs namespaces of its own for mounts and processes, which this machine refuses; run it where root may make them."
}

# make_system: a step that makes build/system, unless it is there.
make_system() {
    local mirror keyring log=$LOGS/debootstrap.log
    step "user space of Debian 13"
    if [ "$(cat "$SYSTEM/.made" 2>/dev/null)" = "$SUITE" ]; then
        step_done present
        return
    fi
    if ! command -v debootstrap >/dev/null 2>&1; then
        { apt-get -q update && apt-get -q install -y --no-install-recommends debootstrap; } </dev/null >"$log" 2>&1 ||
            impossible "debootstrap is needed and cannot be installed; install it first, on Debian with 'apt-get install debootstrap'."
    fi
    mirror=$(pick_mirror)
    [ -n "$mirror" ] || impossible "there is no Debian mirror among this machine's apt sources, and the packages come from there; add one."
    keyring=$(debian_keyring)
    [ -n "$keyring" ] || impossible "the keys of Debian's archive are needed; install them first, with 'apt-get install debian-archive-keyring'."
    make_tmp
    apart debootstrap --variant=minbase --keyring="$keyring" "$SUITE" "$tmp/system" "$mirror" </dev/null >"$log" 2>&1 || {
        tail -n 20 "$log" "$tmp/system/debootstrap/debootstrap.log" >&2 2>/dev/null || :
        impossible "debootstrap could not make a user space of Debian 13 from $mirror; look at the lines above."
    }
    printf '%s\n' {deb,deb-src}" $mirror $SUITE main" > "$tmp/system/etc/apt/sources.list"
    printf '%s\n' "$SUITE" > "$tmp/system/.made"
    if [ -e "$SYSTEM" ]; then mv "$SYSTEM" "$tmp/old"; fi
    mv -T "$tmp/system" "$SYSTEM"
    step_done made
}

# add_packages TEXT WORD...: a step that has apt-get do WORD... in the user space,
# or in LAYER, unless it did that before.
add_packages() {
    local made=${LAYER:-$SYSTEM}/.packages log=$LOGS/system-packages.log what
    step "$1"
    shift
    what="$*${LAYER:+ $(sha256sum < "$SYSTEM/var/lib/dpkg/status")}"
    if [ "$(cat "$made" 2>/dev/null)" = "$what" ]; then
        step_done "installed before"
        return
    fi
    # One over something else is of no use any more.
    if [ -n "${LAYER:-}" ]; then rm -rf "$LAYER"; mkdir -p "$LAYER"; fi
    # The first is for what an interrupted run has left.
    inside -- sh -c 'dpkg --configure -a && apt-get -q update && apt-get -q -y --no-install-recommends "$@" && apt-get clean' \
        sh "$@" >"$log" 2>&1 ||
        die_log "$log" "apt-get could not install this in the user space; look at the lines above, and run the same again"
    printf '%s\n' "$what" > "$made"
    step_done installed
}
