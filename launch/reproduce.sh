#!/usr/bin/env bash
# All rows of one of the paper's tables: trains, evaluates, reports, and sets the paper's claims
# beside what was measured. Called again, it continues. EXTRAS=cuda13 (cuda12, tpu) installs JAX for
# an accelerator. See docs/reproduce.md.
#
#   ./launch/reproduce.sh table3 --scale=tiny     # a rehearsal on a CPU
#   ./launch/reproduce.sh table3 --dry_run        # the commands
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
[ $# -gt 0 ] || set -- --help # before anything is installed
MODULE=ancra_jax.paper read_arguments "$@"
python=.venv/bin/python
if [ -z "$dry_run" ]; then
  ensure_environment "${EXTRAS:-}"
elif ! python="$(installed_python)"; then
  echo "error: --dry_run checks the settings, which needs the project's packages; PYTHON=/path/to/python" \
    "names a Python that has them, and without --dry_run they are installed into .venv" >&2
  exit 2
fi
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}"
exec "$python" -m ancra_jax.paper "$@"
