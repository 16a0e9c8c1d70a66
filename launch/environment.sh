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
    echo "installing ancra_jax${extras:+[$extras]} and what it needs into .venv"
    .venv/bin/python -m pip install --quiet --upgrade pip
    .venv/bin/python -m pip install --quiet --editable ".${extras:+[$extras]}"
    cp pyproject.toml "$stamp"
  fi
}
