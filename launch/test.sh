#!/usr/bin/env bash
# Lints, type-checks and tests, and prints how much of the code the tests run.
# Makes .venv on the first call. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
ensure_environment "dev"

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest --numprocesses=2 --dist=worksteal --cov --cov-report=term:skip-covered "$@"
