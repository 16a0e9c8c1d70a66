#!/usr/bin/env bash
# All rows of one of the paper's tables: trains, evaluates, reports, and sets the paper's claims
# beside what was measured. Called again, it continues. EXTRAS=cuda13 (cuda12, tpu) installs JAX for
# an accelerator. See --help and docs/reproduce.md.
#
#   ./launch/reproduce.sh table3 --scale=tiny     # a rehearsal on a CPU
#   ./launch/reproduce.sh table3 --dry_run        # the commands
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
ensure_environment "${EXTRAS:-}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}"
exec .venv/bin/python -m ancra_jax.paper "$@"
