#!/usr/bin/env bash
# Trains on all GPUs of one machine. All arguments go to ancra_jax.train; CUDA=12 for older drivers.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
MODULE=ancra_jax.train read_arguments "$@"
if [ -z "$dry_run" ]; then ensure_environment "cuda${CUDA:-13}"; fi
run_or_print .venv/bin/python -m ancra_jax.train "${arguments[@]}"
