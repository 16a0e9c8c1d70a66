#!/usr/bin/env bash
# Lints, type-checks and tests, and prints how much of the code the tests run.
# Makes .venv on the first call. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
read_arguments "$@"
ensure_environment dev

run_or_print .venv/bin/ruff check .
run_or_print .venv/bin/ruff format --check .
run_or_print .venv/bin/mypy
run_or_print .venv/bin/python -m pytest --numprocesses=2 --dist=worksteal --cov \
  --cov-report=term:skip-covered "${arguments[@]}"
