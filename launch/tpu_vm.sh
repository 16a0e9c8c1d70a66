#!/usr/bin/env bash
# Creates a TPU VM or a pod slice, trains and evaluates on all of its hosts, through gcloud. The zone is
# gcloud's: `gcloud config set compute/zone ZONE`, or CLOUDSDK_COMPUTE_ZONE=ZONE. Flags of `create`
# and `delete` go to gcloud; --queued makes, and deletes, a queued resource, which waits for its turn.
#
#   ./launch/tpu_vm.sh create  NAME --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot
#   ./launch/tpu_vm.sh copy    NAME           # this clone's files, to ~/ancra_jax on every host
#   ./launch/tpu_vm.sh install NAME           # Python and packages there
#   ./launch/tpu_vm.sh run     NAME train --config=cifar10.py:trades_ancra --workdir=/mnt/shared/ancra
#   ./launch/tpu_vm.sh logs    NAME [HOST]    # of host 0, 1, ...; follows them
#   ./launch/tpu_vm.sh stop    NAME           # saves a checkpoint; `run` continues from it
#   ./launch/tpu_vm.sh delete  NAME
#
# The work directory has to be on a disk, or in a bucket, that all hosts see. A run does not need the
# connection; after a preemption delete, create, copy, install and run continue it. --dry_run prints
# the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
read_arguments "$@"
if [ "${#arguments[@]}" -lt 2 ]; then
  echo "error: give create, copy, install, run, logs, stop or delete, and a name; see --help" >&2
  exit 2
fi
action="${arguments[0]}" name="${arguments[1]}" queued="" rest=()
for argument in "${arguments[@]:2}"; do
  if [ "$argument" = --queued ]; then queued=1; else rest+=("$argument"); fi
done
refuse_others 1 "$name"
case "$action" in
  copy | install | stop) refuse_others 0 "${rest[@]}" ;;
  logs) refuse_others 1 "${rest[@]}" ;;
  run) check_command "${rest[@]}" ;;
esac
tpus=(gcloud compute tpus)

# Runs a command on host $1, a number or `all`.
on() {
  run_or_print "${tpus[@]}" tpu-vm ssh "$name" "--worker=$1" "--command=cd ancra_jax && $2"
}

# shellcheck disable=SC2016  # the hosts expand what is in single quotes
case "$action" in
  create)
    if [ -n "$queued" ]; then
      run_or_print "${tpus[@]}" queued-resources create "$name" "--node-id=$name" \
        "${rest[@]/#--version=/--runtime-version=}"
    else
      run_or_print "${tpus[@]}" tpu-vm create "$name" "${rest[@]}"
    fi
    ;;
  copy)
    archive="${TMPDIR:-/tmp}/ancra_jax-$name.tar.gz"
    run_or_print bash -o pipefail -c 'git ls-files -z --cached --others --exclude-standard |
      tar --create --gzip --null --files-from=- --file="$0"' "$archive"
    run_or_print "${tpus[@]}" tpu-vm scp "$archive" "$name:ancra_jax.tar.gz" --worker=all
    run_or_print rm "$archive"
    run_or_print "${tpus[@]}" tpu-vm ssh "$name" --worker=all \
      --command='mkdir -p ancra_jax && tar --extract --gzip --file=ancra_jax.tar.gz --directory=ancra_jax'
    ;;
  install)
    on all 'export PATH="$HOME/.local/bin:$PATH" && { command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh; } && bash -euc "source launch/environment.sh; ensure_environment tpu"'
    ;;
  run)
    host=0
    if is_distributed "${rest[0]:-}"; then
      host=all
      rest+=(--distributed)
    fi
    on "$host" 'if pgrep -F run.pid -f ancra >/dev/null 2>&1; then echo "error: there is a run already: see logs, stop" >&2; exit 1; fi && { setsid '"$(printf '%q ' .venv/bin/ancra "${rest[@]}")"'</dev/null >>run.log 2>&1 & echo $! >run.pid; }'
    ;;
  logs) on "${rest[0]:-0}" 'tail --lines=100 --follow --pid="$(cat run.pid)" run.log' ;;
  stop)
    on all '{ pkill -TERM -F run.pid -f ancra; while pgrep -F run.pid -f ancra; do sleep 1; done; } >/dev/null 2>&1; tail --lines=1 run.log'
    ;;
  delete)
    if [ -n "$queued" ]; then
      run_or_print "${tpus[@]}" queued-resources delete "$name" --force --quiet "${rest[@]}"
    else
      run_or_print "${tpus[@]}" tpu-vm delete "$name" --quiet "${rest[@]}"
    fi
    ;;
  *)
    echo "error: $action: must be create, copy, install, run, logs, stop or delete" >&2
    exit 2
    ;;
esac
