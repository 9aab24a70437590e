#!/usr/bin/env bash
# build.sh [stock]: configure and build CPython out of tree for CONFIG.
#
# Without argument build/cpython is built in build/CONFIG; with 'stock' the
# unpatched source is built in build/stock-CONFIG.  configure runs only when it
# has not finished before or its script or options have changed; make always
# runs, so that after an edit only what depends on it is compiled again.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/stock.sh
. "$ROOT/scripts/stock.sh"

CONFIG=${CONFIG:-release}
check_config "$CONFIG"
need git make gcc
mkdir -p "$LOGS"

src=$TREE
dir=$BUILD/$CONFIG
name=$CONFIG
if [ "${1:-}" = stock ]; then
    src=$STOCK
    dir=$BUILD/stock-$CONFIG
    name=stock-$CONFIG
    stock_source
fi

# shellcheck source=scripts/options.sh
. "$ROOT/scripts/options.sh"
config_options "$CONFIG"

# A profile is of one source: with another one the compiler refuses it.
profiled_source() {
    if [ "$CONFIG" = optimized ] && [ "$src" = "$TREE" ]; then
        set -- Include Lib/test/libregrtest/pgo.py Modules Objects Parser Programs Python
        g -C "$src" ls-tree -r HEAD -- "$@"
        g -C "$src" diff HEAD -- "$@"
    fi
}

step "configure ($name)"
mkdir -p "$dir"
want=$({ printf '%s\n' "$src" "${CC:-}" "${CFLAGS:-}" "${CPPFLAGS:-}" "${LDFLAGS:-}" "${OPTIONS[@]+"${OPTIONS[@]}"}"
    cat "$src/configure"
    profiled_source; } | sha256sum)
if [ "$(cat "$dir/.configured" 2>/dev/null)" = "$want" ] && [ -f "$dir/Makefile" ]; then
    step_done "done before"
else
    rm -f "$dir/.configured"
    if [ -f "$dir/Makefile" ]; then
        # Objects of other options must not be mixed in.
        rm -rf "$dir"
        mkdir -p "$dir"
    fi
    (cd "$dir" && "$src/configure" "${OPTIONS[@]+"${OPTIONS[@]}"}") </dev/null >"$LOGS/configure-$name.log" 2>&1 ||
        die_log "$LOGS/configure-$name.log" "configure failed for $name; look at the lines above"
    printf '%s\n' "$want" > "$dir/.configured"
    step_done
fi

step "build ($name, $JOBS jobs)"
make -C "$dir" -j"$JOBS" </dev/null >"$LOGS/build-$name.log" 2>&1 ||
    die_log "$LOGS/build-$name.log" "the build of $name failed; repair the source and run make again"
# CPython's own warnings are not ours to repeat, those in lines of the series are.
warnings=0
if [ "$src" = "$TREE" ]; then
    while IFS=: read -r file line _; do
        file=${file#"$src"/}
        if g -C "$src" diff -U0 pristine -- "$file" | awk -v line="$line" '
            /^@@/ { split($3, a, ","); from = substr(a[1], 2); n = a[2] == "" ? 1 : a[2]
                    if (line >= from && line < from + n) found = 1 }
            END { exit !found }'
        then
            warnings=$((warnings + 1))
        fi
    done < <(grep -F "$src/" "$LOGS/build-$name.log" | grep ' warning: ' | sort -u)
fi
if [ "$warnings" != 0 ]; then
    step_done "build/$name/python, $warnings compiler warnings in lines of the series, see build/log/build-$name.log"
else
    step_done "build/$name/python"
fi
