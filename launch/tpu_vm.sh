#!/usr/bin/env bash
# Trains on a TPU VM or pod slice. Call it on every host, which gcloud does for all at once:
#
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command='
#     cd ancra_jax && ./launch/tpu_vm.sh --config=cifar10.py:trades_ancra \
#       --config.data.data_dir=gs://BUCKET/tensorflow_datasets --workdir=/mnt/shared/trades_ancra'
#
# The work directory has to be on a disk that all hosts see (a Filestore share, a mounted bucket). All
# arguments go to ancra_jax.train; called again after a preemption, it continues.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
MODULE=ancra_jax.train read_arguments "$@"
if [ -z "$dry_run" ]; then ensure_environment "tpu"; fi
run_or_print .venv/bin/python -m ancra_jax.train --distributed "${arguments[@]}"
