#!/usr/bin/env bash
# demo.sh: run the series' example with build/CONFIG/python, output shown.
# DEMO= names another script of the tree.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CONFIG=${CONFIG:-release}
check_config "$CONFIG"
# shellcheck source=scripts/options.sh
. "$ROOT/scripts/options.sh"
config_options "$CONFIG"
DEMO=${DEMO:-Doc/includes/tracemalloc_interpreters.py}
unset "${!PYTHON@}"

[ -f "$TREE/$DEMO" ] ||
    die "the tree has no $DEMO to run; apply the series that adds it, or name another script with DEMO=."
[ -x "$BUILD/$CONFIG/python" ] ||
    die "build/$CONFIG/python is not there; run 'make build CONFIG=$CONFIG' first."

step "demo ($DEMO)"
printf '\n\n'
STEP_OPEN=
status=0
"$BUILD/$CONFIG/python" "$TREE/$DEMO" </dev/null || status=$?
echo
[ "$status" = 0 ] ||
    die "the demo ended with exit status $status; see its output above, build/$CONFIG/python $DEMO runs it again."
