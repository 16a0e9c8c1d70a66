#!/usr/bin/env bash
# Runs a command of `ancra` on all GPUs of this machine; `install` only makes .venv. CUDA=12 is for
# older drivers.
#
#   ./launch/gpu.sh train --config=cifar10.py:trades_ancra --workdir=runs/trades_ancra
#   ./launch/gpu.sh evaluate --workdir=runs/trades_ancra
#   ./launch/gpu.sh evaluate --workdir=runs/trades_ancra --dry_run     # the commands
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
[ $# -gt 0 ] || set -- --help # before anything is installed
MODULE=ancra_jax.cli.commands read_arguments "$@"
[ "${arguments[0]:-}" = install ] || check_command "${arguments[@]}"
ensure_environment "cuda${CUDA:-13}"
if [ "${arguments[0]:-}" != install ]; then exec_or_print .venv/bin/ancra "${arguments[@]}"; fi
