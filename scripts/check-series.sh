#!/usr/bin/env bash
# check-series.sh: is what lies in patches/ and in the folders in order?
#
# The patches apply to the pristine source with plain 'git am', in a fresh
# clone; the folders equal the result to the byte; no line added ends in white
# space; no path of this machine is in them; the cover letter is there.  Says how
# long the files are (sizes.py).
# EACH=1: every patch also builds and passes test_tracemalloc by itself, in
# each of EACH_CONFIGS ("release"); EACH_OPT are the compiler's options there.
# VERSION= another release: only checks that the patches apply to it.
# CPYTHON= another version, 3.13 or later: only says which patches apply to that,
# and which files of the others need porting.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/owned.sh
. "$ROOT/scripts/owned.sh"
# shellcheck source=scripts/options.sh
. "$ROOT/scripts/options.sh"

need git
mkdir -p "$LOGS"
LOG=$LOGS/check-series.log
: > "$LOG"
bad=0

# wrong SENTENCE: something to report, and go on.
wrong() {
    end_line
    printf 'error: %s\n' "$*" >&2
    bad=$((bad + 1))
}

mapfile -t series < <(patch_files)
[ ${#series[@]} != 0 ] || die "there is no patch in patches/; write the series with 'make export'."
if [ "$VERSION" != "$BASE" ] && [ -z "${CPYTHON:-}" ]; then
    "$ROOT/scripts/tree.sh" || give_up
    echo "all ${#series[@]} apply to CPython $VERSION; nothing else is checked with a version other than $BASE"
    exit 0
fi
make_tmp
repo=$tmp/cpython
STEPS=3
if [ -n "${EACH:-}" ] && [ "$EACH" != 0 ]; then
    EACH_CONFIGS=${EACH_CONFIGS:-release}
    for config in $EACH_CONFIGS; do check_config "$config"; done
    STEPS=4
fi

step "source"
if [ -n "${CPYTHON:-}" ]; then
    ANY_VERSION=1 "$ROOT/scripts/import.sh" "$repo" || give_up
elif [ "$(g -C "$TREE" rev-parse -q --verify 'pristine^{tree}' 2>/dev/null)" = "$PRISTINE_TREE" ]; then
    g clone -q --shared --no-checkout --template= "$TREE" "$repo"
    write_attributes "$repo"
    g -C "$repo" config core.autocrlf false
    g -C "$repo" checkout -q -B "$BRANCH" pristine
else
    "$ROOT/scripts/import.sh" "$repo" || give_up
fi
version=$(sed -n 's/^#define PY_VERSION[[:space:]]*"\(.*\)"$/\1/p' "$repo/Include/patchlevel.h")
step_done "CPython $version"

# apply FILE: git am of one patch.
apply() {
    g -C "$repo" am --no-3way --keep-non-patch --whitespace=nowarn -q "$1" >>"$LOG" 2>&1 </dev/null
}

step "git am of ${#series[@]} patches"
if [ "$version" != "$VERSION" ]; then
    step_done "to CPython $version"
    "$ROOT/scripts/porting.sh" "$repo" || give_up
    echo "all ${#series[@]} apply; nothing else is checked with a version other than $VERSION"
    exit 0
fi
committer
for file in "${series[@]}"; do
    apply "$file" ||
        die_log "$LOG" "patches/${file##*/} does not apply to CPython $version; repair it in build/cpython and run 'make export'"
done
step_done "all apply"

step "folders and rules"
head=$(g -C "$repo" rev-parse HEAD)
read_owned "$repo" "$head" > "$tmp/owned"
write_owned "$repo" "$head" "$tmp/owned" "$tmp/folders"
while IFS= read -r path; do
    if [ ! -f "$ROOT/$path" ]; then
        wrong "$path is missing here though the series owns it; run 'make export'."
    elif ! same_file "$tmp/folders/$path" "$ROOT/$path"; then
        wrong "$path differs from what the series makes of it; run 'make export', or edit it in build/cpython first."
    fi
done < "$tmp/owned"
while IFS= read -r path; do
    grep -qxF -- "$path" "$tmp/owned" ||
        wrong "$path is not owned by the series; remove it, or list it in patches/OWNED."
done < <(folder_files)

[ -f "$COVER" ] || wrong "patches/${COVER##*/} is missing; write it."

base=pristine
number=0
for commit in $(g -C "$repo" rev-list --reverse pristine..HEAD); do
    number=$((number + 1))
    where=$(g -C "$repo" -c core.whitespace=trailing-space,-space-before-tab,-tab-in-indent,-indent-with-non-tab \
        diff --check --no-renames "$base" "$commit" | grep -v '^+' | head -n 3 | paste -sd' ') || :
    [ -z "$where" ] ||
        wrong "${series[number - 1]##*/} adds white space at the end of lines ($where); remove it there."
    base=$commit
done

# Paths of this machine in what the series adds or says.
paths=$tmp/paths
{
    printf '%s/\n' "$ROOT"
    if [ "${#HOME}" -gt 1 ]; then printf '%s/\n' "$HOME"; fi
    case /${ROOT#/} in
    /bin/*|/etc/*|/mnt/*|/opt/*|/srv/*|/tmp/*|/usr/*|/var/*) ;;
    /*/*) printf '/%s/\n' "$(cut -d/ -f2 <<<"$ROOT")" ;;
    esac
} | sort -u > "$paths"
for file in "$COVER" "${series[@]}"; do
    [ -f "$file" ] || continue
    # Context and removed lines are CPython's own.
    where=$(sed '/^[ -]/d' "$file" | grep -F -f "$paths" | head -n 1) || :
    [ -z "$where" ] ||
        wrong "patches/${file##*/} holds a path of this machine (${where:0:100}); take it out."
done
[ "$bad" = 0 ] || give_up
step_done "$(wc -l < "$tmp/owned") whole files are equal, no trailing white space"
if command -v python3 >/dev/null 2>&1; then
    # What a reviewer has to read; it is said, and decides nothing.
    python3 -I -B "$ROOT/scripts/sizes.py" "$ROOT" || :
fi

if [ "$STEPS" = 4 ]; then
    step "each patch by itself"
    STEP_OPEN=
    echo
    unset "${!PYTHON@}"
    for config in $EACH_CONFIGS; do
        # A subshell, for what config_options exports.
        (
            config_options "$config"
            # Each one by hand: '||' below turns 'set -e' off.
            dir=$tmp/build-$config
            { g -C "$repo" checkout -q -f --detach pristine && mkdir "$dir"; } || die "the folder for the build of $config cannot be made; is the disk full?"
            number=0
            for commit in $(g -C "$repo" rev-list --reverse "pristine..$head"); do
                number=$((number + 1))
                name=${series[number - 1]##*/}
                log=$LOGS/each-$config-${name%%-*}.log
                start=$SECONDS
                g -C "$repo" checkout -q -f --detach "$commit" || die "the commit of $name cannot be checked out; is the disk full?"
                if [ ! -f "$dir/Makefile" ] || ! cmp -s "$repo/configure" "$dir/.configure"; then
                    (cd "$dir" && OPT="${EACH_OPT--DNDEBUG -fwrapv -O1 -Wall}" "$repo/configure" "${OPTIONS[@]+"${OPTIONS[@]}"}") >"$log" 2>&1 </dev/null ||
                        die_log "$log" "configure fails with $name ($config); repair it in build/cpython and run 'make export'"
                    cp "$repo/configure" "$dir/.configure" || die "$dir cannot be written to; is the disk full?"
                fi
                make -C "$dir" -j"$JOBS" >"$log" 2>&1 </dev/null ||
                    die_log "$log" "CPython does not build with the series up to $name ($config); repair it in build/cpython and run 'make export'"
                (cd "$dir" && ./python -B -m test --timeout 600 --fail-env-changed -W test_tracemalloc) >>"$log" 2>&1 </dev/null ||
                    die_log "$log" "test_tracemalloc fails with the series up to $name ($config); repair it in build/cpython and run 'make export'"
                printf '      %s: %s builds, test_tracemalloc passes, %d s\n' "$config" "$name" "$((SECONDS - start))"
            done
        ) || give_up
    done
fi
echo "the series of ${#series[@]} patches is in order"
