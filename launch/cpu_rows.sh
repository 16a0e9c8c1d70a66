#!/usr/bin/env bash
# The rows for a CPU: a ResNet-18 of width 8 on 4,000 images of CIFAR-10, 8 epochs, three seeds, with
# and without the parts of ANCRA. Small scale: not the paper's setting. Hours; called again, it
# continues where it stopped.
#
#   ./launch/cpu_rows.sh DATA_DIR [OUT]          # DATA_DIR: see docs/data.md; OUT: runs/cpu_rows
#   EXAMPLES=200 SEEDS=0 METHODS="trades trades_ancra" ./launch/cpu_rows.sh cifar10_jpeg.npz
#   SUITES="paper adaptive" BUDGET=standard ./launch/cpu_rows.sh cifar10_jpeg.npz
#   WEIGHTS=ema ./launch/cpu_rows.sh cifar10_jpeg.npz   # averaged weights are kept, and evaluated
#   TRANSFER=1 ./launch/cpu_rows.sh cifar10_jpeg.npz    # worst_case, with transfer between rows
#   ./launch/cpu_rows.sh cifar10_jpeg.npz --dry_run     # the commands
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
read_arguments "$@"
refuse_others 2 "${arguments[@]}"
if [ -z "${arguments[0]:-}" ]; then
  echo "error: DATA_DIR is missing: the directory or file of CIFAR-10" >&2
  exit 2
fi
case "${WEIGHTS:-raw}" in
  raw) averaged=() chosen=() ;;
  ema) averaged=(--config.ema.decay=0.995) chosen=(--weights=ema) ;;
  *)
    echo "error: WEIGHTS=$WEIGHTS: allowed are raw, ema" >&2
    exit 2
    ;;
esac
ensure_environment ""

data_dir="${arguments[0]}"
out="${arguments[1]:-runs/cpu_rows}"
methods="${METHODS:-trades trades_ancra trades_ra trades_anc pgd_at pgd_at_ancra}"
settings=(
  --config.model.width=8
  --config.data.train_examples=4000
  --config.epochs=8
  --config.batch_size=64
  --config.optimizer.schedule=one_cycle
  --config.optimizer.learning_rate=0.2
  --config.negative_contrast.random_epochs=2
  --config.selection.every_epochs=4
  "${averaged[@]}"
)
evaluated=("--adaptive_budget=${BUDGET:-quick}" "--num_examples=${EXAMPLES:-200}" "${chosen[@]}")
suites="${SUITES:-${TRANSFER:+worst_case}}" # with transfer, those that take it
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
failed=()

# A row that fails does not stop the others; a signal stops everything.
run() {
  run_or_print .venv/bin/python -m "$@" && return
  status=$?
  if [ "$status" -gt 128 ]; then exit "$status"; fi
  failed+=("$2")
  return 1
}

for seed in ${SEEDS:-0 1 2}; do
  trained=()
  for method in $methods; do
    row="$out/$method-$seed"
    echo "== $row"
    run ancra_jax.train "--workdir=$row" "--config=configs/cifar10.py:$method" \
      "--config.seed=$seed" "--config.data.data_dir=$data_dir" "${settings[@]}" || continue
    trained+=("$row")
  done
  for row in "${trained[@]}"; do
    others=""
    if [ -n "${TRANSFER:-}" ]; then
      for other in "${trained[@]}"; do
        if [ "$other" != "$row" ]; then others+=",$other"; fi
      done
    fi
    for suite in ${suites:-paper adaptive diagnostics}; do
      run ancra_jax.evaluate "--workdir=$row" "--suite=$suite" "${evaluated[@]}" \
        ${others:+"--transfer_from=${others#,}"} || break
    done
  done
done
if [ "${#failed[@]}" -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
if [ -n "$dry_run" ]; then exit 0; fi
rows=$(printf ',%s' "$out"/*-[0-9]*)
echo "all rows are there; to publish them:"
printf '.venv/bin/python -m tools.publish %q\n' "--workdirs=${rows#,}"
