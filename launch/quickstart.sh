#!/usr/bin/env bash
# From a fresh clone to a table: trains three networks on scikit-learn's digits, attacks them, also
# through the mask of the one that has one, and reports. A network is attacked while the next one is
# trained. Nothing but Python is needed, no data is downloaded. Minutes on two cores; called again,
# it continues where it stopped.
#
#   ./launch/quickstart.sh [OUT] [--dry_run]     # OUT: runs/quickstart; --dry_run: the commands
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
read_arguments "$@"
refuse_others 1 "${arguments[@]}"
ensure_environment ""

out="${arguments[0]:-runs/quickstart}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
workdirs=()
waits_for="" # the process that evaluates a network while the next one is trained
trap 'kill $waits_for 2>/dev/null || true' EXIT

show_evaluation() { # once it has ended; its status is that of the function
  local status=0
  if [ -z "$waits_for" ]; then return; fi
  wait "$waits_for" || status=$?
  waits_for=""
  cat "$log"
  rm "$log"
  return "$status"
}

for method in natural trades trades_ancra; do
  echo "== $method: train and evaluate"
  run_or_print .venv/bin/python -m ancra_jax.train --config="configs/digits.py:$method" --workdir="$out/$method"
  workdirs+=("$out/$method")
  show_evaluation
  evaluate=(.venv/bin/python -m ancra_jax.evaluate --workdir="$out/$method"
    --suite=worst_case --adaptive_budget=quick)
  if [ -n "$dry_run" ]; then
    run_or_print "${evaluate[@]}"
    continue
  fi
  log="$out/$method.log"
  "${evaluate[@]}" >"$log" 2>&1 &
  waits_for=$!
done
show_evaluation
echo "== report"
run_or_print .venv/bin/python -m ancra_jax.report --output="$out/report" \
  --workdirs="$(IFS=,; echo "${workdirs[*]}")"
if [ -n "$dry_run" ]; then exit 0; fi
echo "The report is in $out/report/report.html"
