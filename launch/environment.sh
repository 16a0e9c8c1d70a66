# Sourced by the scripts beside it: makes .venv with the project and its dependencies.

ensure_environment() {
  local extras="${1:-}" python="${PYTHON:-}" stamp
  if [ ! -x .venv/bin/python ]; then
    if [ -z "$python" ]; then
      for candidate in python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
          python="$candidate"
          break
        fi
      done
    fi
    if [ -z "$python" ]; then
      echo "error: Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/python" >&2
      exit 1
    fi
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  # Installed again only when what the project needs has changed.
  stamp=".venv/installed-${extras:-base}"
  if ! cmp -s pyproject.toml "$stamp"; then
    echo "installing ancra_jax[all${extras:+,$extras}] and what it needs into .venv"
    .venv/bin/python -m pip install --quiet --upgrade pip
    .venv/bin/python -m pip install --quiet --editable ".[all${extras:+,$extras}]"
    cp pyproject.toml "$stamp"
  fi
}

# Reads a script's arguments; --help and --dry_run install nothing. --help prints the comment at the
# top of the script, and the help of $MODULE where a Python has what that needs. Sets `dry_run` and
# `arguments`, the others.
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
          "$python" -m "$MODULE" --help
        fi
        exit 0
        ;;
      --dry_run) dry_run=1 ;;
      *) arguments+=("$argument") ;;
    esac
  done
}

# For scripts that take no flags of their own.
refuse_flags() {
  local argument
  for argument in "$@"; do
    case "$argument" in
      -*)
        echo "error: there is no flag $argument; --help says what there is" >&2
        exit 2
        ;;
    esac
  done
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
    printf '%q ' "$@"
    echo
  fi
}
