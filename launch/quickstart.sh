#!/usr/bin/env bash
# From a fresh clone to a table: trains three networks on scikit-learn's digits, attacks them, also
# through the mask of the one that has one, and reports. Nothing but Python is needed, no data is
# downloaded. Minutes on two cores; called again, it continues where it stopped.
#
#   ./launch/quickstart.sh [OUT] [--dry_run]     # OUT: runs/quickstart; --dry_run: the commands
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
read_arguments "$@"
refuse_flags "${arguments[@]}"
ensure_environment ""

out="${arguments[0]:-runs/quickstart}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
workdirs=()
for method in natural trades trades_ancra; do
  echo "== $method: train and evaluate"
  run_or_print .venv/bin/python -m ancra_jax.train --config="configs/digits.py:$method" --workdir="$out/$method"
  run_or_print .venv/bin/python -m ancra_jax.evaluate --workdir="$out/$method" \
    --suite=worst_case --adaptive_budget=quick
  workdirs+=("$out/$method")
done
echo "== report"
run_or_print .venv/bin/python -m ancra_jax.report --output="$out/report" \
  --workdirs="$(IFS=,; echo "${workdirs[*]}")"
if [ -n "$dry_run" ]; then exit 0; fi
echo "The report is in $out/report/report.html"
