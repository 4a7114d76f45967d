#!/usr/bin/env bash
# Makes the environment if needed and runs the checks: bash launch/test.sh [fast] [pytest arguments]
# "fast" runs the tests that tests/fast.txt names, some of every room: an answer in three minutes.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# libtpu compiles for TPUs on any machine.
install_environment demo,dev,docs,finetune,gcs,parity,s3,search,tpu
# The original layers, for the parity tests; of its dependencies only torch is needed.
.venv/bin/python -m pip show --quiet DeBERTa 2> /dev/null ||
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps DeBERTa==0.1.12

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
.venv/bin/mypy
if [ "${1:-}" = fast ]; then
    shift
    set -- @tests/fast.txt "$@"
fi
# Each test file stays in one process, so that its runs and prepared data are made once.
.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
