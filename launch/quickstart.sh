#!/usr/bin/env bash
# From a fresh machine to a trained, exported DeBERTa: bash launch/quickstart.sh [WORKDIR]
# Run again, it continues from the last checkpoint.
set -euo pipefail

workdir="$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/quickstart}")"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_environment demo

python=.venv/bin/python
recipe=(--config=configs/quickstart.py --workdir="$workdir")
"$python" -m deberta_jax.prepare "${recipe[@]}"
"$python" -m deberta_jax.train "${recipe[@]}"
"$python" -m deberta_jax.evaluate --workdir="$workdir"
"$python" -m deberta_jax.export --workdir="$workdir" --out="$workdir/export"
