# shellcheck shell=bash
# Sourced after common.sh: the unpatched source.
# shellcheck disable=SC2154 # of common.sh

STOCK=$BUILD/stock-src

# stock_source: a step that makes sure that build/stock-src is there, unchanged.
stock_source() {
    step "unpatched source (CPython $VERSION)"
    if [ "$(g -C "$STOCK" rev-parse -q --verify 'HEAD^{tree}' 2>/dev/null)" = "$PRISTINE_TREE" ] &&
        [ -z "$(g -C "$STOCK" status --porcelain)" ]; then
        step_done present
    else
        make_tmp
        "$ROOT/scripts/import.sh" "$tmp/stock" || give_up
        if [ -e "$STOCK" ]; then mv "$STOCK" "$tmp/old"; fi
        mv -T "$tmp/stock" "$STOCK"
        step_done verified
    fi
}
