#!/usr/bin/env bash
# One slice of a campaign on a borrowed accelerator: as many rows as the time allows. All arguments
# go to ancra_jax.campaign; see docs/campaign.md.
#
#   ./launch/campaign.sh --minutes=30 --data_dir=cifar10_jpeg.npz --dry_run --trades_step_ms=60
#   ./launch/campaign.sh --minutes=30 --data_dir=cifar10_jpeg.npz       # again while it exits with 75
#
# PYTHON=python3 uses a Python that has what is needed, on a machine without a network; else .venv is
# made, with JAX for the accelerator that EXTRAS names (cuda13, cuda12, tpu, or nothing for a CPU).
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${PYTHON:-}" ] && "$PYTHON" -c 'import flax, ml_collections, optax, orbax.checkpoint, tensorboardX' 2>/dev/null; then
  python="$PYTHON"
else
  source launch/environment.sh
  ensure_environment "${EXTRAS-cuda13}"
  python=.venv/bin/python
fi
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"
exec "$python" -m ancra_jax.campaign "$@"
