# shellcheck shell=bash
# shellcheck disable=SC2154 # $tmp is made by the script that sources this
# Sourced: the files the series owns whole, which stand in the folders named
# like CPython's at the top of this checkout.  They are the files the series
# adds and those listed in patches/OWNED, as blobs of git (LF line ends).

OWNED=$PATCHES/OWNED
FOLDERS="Android Doc Grammar Include InternalDocs Lib Mac Misc Modules Objects PC PCbuild Parser Programs Python Tools iOS"

# read_owned REPO COMMIT: the list, sorted.
read_owned() {
    local path listed=
    if [ -f "$OWNED" ]; then
        listed=$(sed 's/[[:space:]]*#.*//; s/[[:space:]]*$//; s/^[[:space:]]*//; /^$/d' "$OWNED")
    fi
    for path in $listed; do
        g -C "$1" cat-file -e "$2:$path" 2>/dev/null ||
            die "patches/OWNED names $path, which the tree does not have; correct that line."
    done
    {
        g -C "$1" diff --name-only --no-renames --diff-filter=A pristine "$2"
        for path in $listed; do printf '%s\n' "$path"; done
    } | sort -u > "$tmp/owned.list"
    while IFS= read -r path; do
        case " $FOLDERS " in
        *" ${path%%/*} "*) ;;
        *) die "the series owns $path, which is in none of CPython's folders; move it into one or take it out of patches/OWNED." ;;
        esac
    done < "$tmp/owned.list"
    cat "$tmp/owned.list"
}

# write_owned REPO COMMIT LIST DIR: the files of LIST below DIR.
write_owned() {
    local path
    while IFS= read -r path; do
        mkdir -p "$4/$(dirname "$path")"
        g -C "$1" cat-file blob "$2:$path" > "$4/$path"
        case $(g -C "$1" ls-tree "$2" -- "$path") in
        100755*) chmod 755 "$4/$path" ;;
        *) chmod 644 "$4/$path" ;;
        esac
    done < "$3"
}

# folder_files: every file there is in the folders.
folder_files() {
    local name
    for name in $FOLDERS; do
        if [ -d "$ROOT/$name" ]; then (cd "$ROOT" && find "$name" ! -type d); fi
    done | sort
}

# same_file A B: same bytes, and both or neither executable.
same_file() {
    cmp -s "$1" "$2" || return 1
    if [ -x "$1" ]; then [ -x "$2" ]; else [ ! -x "$2" ]; fi
}
