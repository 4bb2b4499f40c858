#!/usr/bin/env bash
# Our processor inside the real mlx-lm, on mlx's CPU build, with the built-in pair.
#
#     bash tests/engines/mlx_lm.sh [PYTHON]
#
# PYTHON is that of an environment with warpdraft and its test extra, by default .venv's. What passed,
# with versions, is written to tests/engines/results/mlx_lm.json; the example is that of docs/engines.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/engines/beside.sh

environment=build/engines/mlx_lm
beside "${1:-.venv/bin/python}" "$environment" 'mlx-lm==0.32.2' 'mlx[cpu]==0.32.4'
"$environment/bin/python" tests/engines/mlx_lm_engine.py docs/engines.md tests/engines/results/mlx_lm.json
