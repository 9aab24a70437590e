#!/usr/bin/env bash
# proof.sh [summary|list]: everything that takes too long for 'make test'.
#
# Runs the steps of scripts/proof.py, whose results lie in build/proof; what
# was done with the same source is not done again, so an interrupted run goes
# on where it was.  ONLY='GROUP or STEP...' picks some, AGAIN=1 repeats failed
# ones, KEPT=1 takes those of scripts/proof-results.json for done.  The table is
# build/proof/summary.md; 'summary' writes it to PROOF.md, and the results to
# that file; 'list' prints what there is to do.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need git make gcc
unset "${!PYTHON@}" FORCE_COLOR
python=${PROOF_PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null ||
    die "$python of version 3.9 or later is needed; install it, or name one by PROOF_PYTHON=."

case ${1:-run} in
run)
    STEPS=2 "$ROOT/scripts/tree.sh" || give_up ;;
summary | list)
    [ -d "$TREE/.git" ] || die "build/cpython is not there; run 'make tree' first." ;;
*)
    die "proof.sh knows 'summary' and 'list', not '$1'." ;;
esac

export ROOT TREE BUILD PRISTINE_TREE VERSION CONFIGS JOBS
trap - EXIT HUP INT TERM
exec "$python" -B "$ROOT/scripts/proof.py" "${1:-run}"
