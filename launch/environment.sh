#!/usr/bin/env bash
# Sourced by the scripts beside it.

# Bash before 4.4, which macOS has, takes an empty array for a variable that is not set.
if [ $((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1])) -lt 404 ]; then set +u; fi

# Makes .venv with the project and what it needs, or prints how under --dry_run. Of several processes
# that share the directory one makes it, and the others wait.
ensure_environment() (
  local extra asked="${1:-}"
  for extra in ${asked//,/ }; do # pip takes an extra that is not there for a warning
    if ! grep --quiet "^$extra = \[" pyproject.toml; then
      echo "error: there is no extra $extra; CUDA must be 12 or 13, EXTRAS such as cuda13 or tpu" >&2
      exit 2
    fi
  done
  extras="all${asked:+,$asked}" stamp=".venv/installed-${asked:-base}" python="${PYTHON:-}"
  if [ -z "${dry_run:=}" ] && command -v flock >/dev/null; then
    exec 9>.venv.lock
    flock 9
  fi
  if [ ! -x .venv/bin/python ]; then
    for candidate in python3.13 python3.12 python3.11 python3; do
      if [ -z "$python" ] && "$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        python="$candidate"
      fi
    done
    if [ -n "$python" ]; then
      run_or_print "$python" -m venv .venv
    elif command -v uv >/dev/null; then
      run_or_print uv venv --quiet --seed --python=3.12 .venv
    else
      echo "error: Python 3.11, 3.12 or 3.13, or uv, is needed; set PYTHON=/path/to/python" >&2
      exit 1
    fi
  fi
  # Installed again only when what the project needs has changed.
  if ! cmp -s pyproject.toml "$stamp"; then
    echo "${dry_run:+# }installing ancra_jax[$extras] into .venv"
    run_or_print .venv/bin/python -m pip install --quiet --upgrade pip
    run_or_print .venv/bin/python -m pip install --quiet --editable ".[$extras]"
    run_or_print cp pyproject.toml "$stamp"
  fi
)

# Reads a script's arguments; --help and --dry_run install nothing. --help prints the comment at the
# top of the script, and what `$MODULE ... --help` says where a Python has what that needs. Sets
# `dry_run` and `arguments`, the others.
read_arguments() {
  local argument python
  dry_run="" arguments=()
  for argument in "$@"; do
    case "$argument" in
      --help | -h)
        awk 'NR > 1 && !/^#/ { exit } NR > 1 && !/^#SBATCH/ { sub(/^# ?/, ""); print }' \
          "launch/$(basename "$0")"
        if [ -n "${MODULE:-}" ] && python="$(installed_python)"; then
          echo
          "$python" -m "$MODULE" "${arguments[@]}" --help
        fi
        exit 0
        ;;
      --dry_run) dry_run=1 ;;
      *) arguments+=("$argument") ;;
    esac
  done
}

# For scripts, or words of them, that take no flags of their own and at most $1 arguments.
refuse_others() {
  local argument most="$1"
  shift
  for argument in "$@"; do
    case "$argument" in
      -*)
        echo "error: there is no flag $argument; --help says what there is" >&2
        exit 2
        ;;
    esac
  done
  if [ $# -gt "$most" ]; then
    echo "error: unexpected argument ${*:most+1:1}; --help says what there is" >&2
    exit 2
  fi
}

# Prints a Python that has the project's packages, if there is one.
installed_python() {
  local candidate
  for candidate in .venv/bin/python ${PYTHON:+"$PYTHON"} python3; do
    if "$candidate" -c 'import absl, jax, flax, ml_collections, rich' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# Runs a command, or prints it under --dry_run.
run_or_print() {
  if [ -z "$dry_run" ]; then
    "$@"
  else
    local word line="" quote="'\\''"
    for word in "$@"; do
      if [[ ! "$word" =~ ^[-./:,=%@+_[:alnum:]]+$ ]]; then word="'${word//\'/$quote}'"; fi
      line+=" $word"
    done
    echo "${line# }"
  fi
}

# The same, as the last thing a script does: the command gets the signals that are sent to the script.
exec_or_print() {
  if [ -z "$dry_run" ]; then exec "$@"; fi
  run_or_print "$@"
}

# Refuses what is no command of `ancra`, before anything is installed or started somewhere else.
check_command() {
  case "${1:-}" in
    train | evaluate | report | paper | predict | import | export) ;;
    *)
      echo "error: ${1:-no command}: must be train, evaluate, report, paper, predict, import or export" >&2
      exit 2
      ;;
  esac
}

# Whether a command of `ancra` can run as several processes; others run as one, on the first host.
is_distributed() {
  [ "$1" = train ] || [ "$1" = evaluate ]
}
