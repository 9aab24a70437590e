# shellcheck shell=bash
# Shared by every script here (sourced, never run): where things are, how an
# error and a progress line look, how git is called so that nobody's own
# settings (hooks, signing, autocrlf, diff.*, format.*) change the outcome,
# and how a half-made directory is cleaned up when a script is interrupted.

# shellcheck disable=SC2034 # most variables are for the scripts that source this

set -euo pipefail
export LC_ALL=C

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# BASE is what the series is made against; VERSION= another release that it is
# tried on, in a folder of its own below build/.
BASE=3.13.5
VERSION=${VERSION:-$BASE}
# The release's tarball, the git tree of its files without Misc/NEWS (see
# fetch.sh), and the suites in which Debian may have its source package.
case $VERSION in
3.13.5)
    TARBALL_SHA256=93e583f243454e6e9e4588ca2c2662206ad961659863277afcdb96801647d640
    PRISTINE_TREE=74e790605f67ed37993fe8f3b1760be79d22cb94
    SUITES="trixie" ;;
3.13.15)
    TARBALL_SHA256=1e66a7945a48390ee4c2a4268a0e4185884059a13c4aab6d148aa208deea4a76
    PRISTINE_TREE=49b543815744a20f3ba0f8b27148a458ea5da50b
    SUITES="forky sid" ;;
*)
    echo "error: VERSION=$VERSION is not known; use 3.13.5 or 3.13.15." >&2
    exit 1 ;;
esac
TARBALL=Python-$VERSION.tar.xz

BUILD=$ROOT/build
CACHE=$BUILD/cache
if [ "$VERSION" != "$BASE" ]; then BUILD=$BUILD/$VERSION; fi
TREE=$BUILD/cpython
LOGS=$BUILD/log
PATCHES=$ROOT/patches
COVER=$PATCHES/0000-cover-letter.patch
BRANCH=tracemalloc

CONFIGS="release optimized debug freethreaded freethreaded-debug asan tsan"

cd "$ROOT"
# shellcheck disable=SC2046
unset $(git rev-parse --local-env-vars 2>/dev/null) CDPATH
unset GIT_EXTERNAL_DIFF GIT_DIFF_OPTS
umask 022

# --- messages ------------------------------------------------------------

STEP_NO=${STEP:-0}          # number of the last step printed by an earlier script
STEP_OPEN=${STEP_OPEN:-}    # 1: on a line without an end, maybe the caller's
STEP_START=0
REPORTED=                   # 1: the error has been told
CALLER=${OUR_SCRIPT:-}      # the one of our scripts that runs this one, if any
export OUR_SCRIPT=${0##*/}

# step TEXT: open a progress line; step_done [TEXT]: close it with the time.
step() {
    STEP_NO=$((STEP_NO + 1))
    printf '[%d/%d] %s ... ' "$STEP_NO" "${STEPS:-$STEP_NO}" "$1"
    export STEP_OPEN=1
    STEP_START=$SECONDS
}

step_done() {
    printf '%s%d s\n' "${1:+$1, }" "$((SECONDS - STEP_START))"
    STEP_OPEN=
}

note() {
    # In the middle of a step the line stays open.
    if [ -n "$STEP_OPEN" ]; then
        printf '\n      %s ... ' "$*"
    else
        printf '%s\n' "$*"
    fi
}

end_line() {
    if [ -n "$STEP_OPEN" ]; then echo; STEP_OPEN=; fi
}

# give_up: fail without a word, when another script has said it.
give_up() {
    STEP_OPEN=
    REPORTED=1
    exit 1
}

# die SENTENCE: the one sentence that says what is wrong and what to do.
die() {
    end_line
    printf 'error: %s\n' "$*" >&2
    give_up
}

# die_log LOG SENTENCE: the same after the last 20 lines of a log.
die_log() {
    local log=$1
    shift
    end_line
    tail -n 20 "$log" >&2 2>/dev/null || :
    die "$* (full log: ${log#"$ROOT"/})."
}

case $ROOT in
*[[:space:]]*) die "CPython cannot be built below a directory with white space in its name; move this checkout elsewhere." ;;
esac

# need TOOL...: stop when a tool is missing, naming all that are.
need() {
    local tool missing=
    for tool; do
        command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
    done
    [ -z "$missing" ] ||
        die "these programs are needed and not installed:$missing; install them first, on Debian with 'apt-get install gcc libc6-dev make git'."
}

check_config() {
    case " $CONFIGS " in
    *" $1 "*) ;;
    *) die "CONFIG=$1 is not known; use one of: $CONFIGS." ;;
    esac
}

JOBS=${JOBS:-$(nproc 2>/dev/null || echo 2)}

# --- temporary directories -------------------------------------------------

tmp=

# make_tmp: make $tmp a directory build/.tmp.XXXXXX, removed on any exit and when
# another one is made.
make_tmp() {
    if [ -n "$tmp" ]; then rm -rf "$tmp"; fi
    mkdir -p "$BUILD"
    tmp=$(mktemp -d "$BUILD/.tmp.XXXXXX")
}

cleanup() {
    local status=$?
    trap - EXIT
    [ "$BASHPID" = $$ ] || exit "$status"       # a subshell
    trap '' HUP INT TERM
    if [ -n "$tmp" ]; then rm -rf "$tmp"; fi
    if [ "$status" != 0 ] && [ -z "$REPORTED" ]; then
        case $status in
        129|130|143)
            # The outermost says it, once.
            [ -z "$CALLER" ] || exit "$status"
            end_line
            echo "error: interrupted, nothing half-done remains; run the same again." >&2 ;;
        *)
            end_line
            echo "error: ${0##*/} stopped unexpectedly (exit status $status), see any message above; run the same again." >&2 ;;
        esac
    fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# --- git ---------------------------------------------------------------------

# g ...: git without system or user settings.
g() {
    GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null \
    GIT_ATTR_NOSYSTEM=1 XDG_CONFIG_HOME=/nonexistent HOME=/nonexistent \
    GIT_PAGER=cat GIT_EDITOR=: GIT_TERMINAL_PROMPT=0 \
        git -c core.hooksPath=/dev/null -c core.autocrlf=false \
            -c core.safecrlf=false -c core.quotePath=false \
            -c core.fsmonitor=false -c advice.detachedHead=false \
            -c commit.gpgSign=false -c gc.auto=0 -c maintenance.auto=false \
            -c safe.directory='*' "$@"
}

# Who commits the applied patches: the user, or else a neutral name.
committer() {
    GIT_COMMITTER_NAME=$(git config user.name || echo 'CPython builder')
    GIT_COMMITTER_EMAIL=$(git config user.email || echo 'builder@localhost')
    export GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL
}

# Upstream keeps the Windows build files with LF in git and CRLF when checked
# out; everything else is stored as it is.  Same rules, in the place that wins
# over any other attributes file.
write_attributes() {
    mkdir -p "$1/.git/info"
    cat > "$1/.git/info/attributes" <<'RULES'
* -text -ident -filter -working-tree-encoding
*.bat text eol=crlf
*.proj text eol=crlf
*.props text eol=crlf
*.ps1 text eol=crlf
*.sln text eol=crlf
*.vcxproj* text eol=crlf
PC/readme.txt text eol=crlf
PCbuild/readme.txt text eol=crlf
RULES
    cat > "$1/.git/info/exclude" <<'RULES'
__pycache__/
*.py[co]
*.o
*.orig
*.rej
*.sw[op]
*~
.DS_Store
/build/
/tags
/TAGS
/compile_commands.json
/.cache/
/.vscode/
/.idea/
RULES
}

# patch_files: the series without its cover letter, one path a line, in order.
patch_files() {
    local file
    for file in "$PATCHES"/[0-9][0-9][0-9][0-9]-*.patch; do
        if [ -f "$file" ] && [ "$file" != "$COVER" ]; then
            printf '%s\n' "$file"
        fi
    done
}

# patches_hash: one value for names and content of the series.
patches_hash() {
    local file
    patch_files | while IFS= read -r file; do
        printf '%s ' "${file##*/}"
        sha256sum < "$file"
    done | sha256sum | cut -d' ' -f1
}

# The stamp in the tree: what was last applied from or exported to patches/.
# Line 1 is patches_hash, line 2 the commit.
STAMP=$TREE/.git/tracemalloc-series
write_stamp() {
    printf '%s\n%s\n' "$1" "$2" > "${3:-$STAMP}.new"
    mv -f "${3:-$STAMP}.new" "${3:-$STAMP}"
}
stamp_hash() { sed -n 1p "$STAMP" 2>/dev/null || :; }
stamp_head() { sed -n 2p "$STAMP" 2>/dev/null || :; }

tree_head() { g -C "$TREE" rev-parse --verify -q HEAD || :; }
tree_branch() { g -C "$TREE" symbolic-ref --short -q HEAD || :; }
tree_dirty() { [ -n "$(g -C "$TREE" --no-optional-locks status --porcelain 2>/dev/null | head -n 1)" ]; }
tree_in_progress() {
    [ -d "$TREE/.git/rebase-apply" ] || [ -d "$TREE/.git/rebase-merge" ] ||
        [ -f "$TREE/.git/MERGE_HEAD" ] || [ -f "$TREE/.git/CHERRY_PICK_HEAD" ] ||
        [ -f "$TREE/.git/REVERT_HEAD" ] || [ -f "$TREE/.git/BISECT_LOG" ]
}
