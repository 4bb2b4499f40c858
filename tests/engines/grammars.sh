#!/usr/bin/env bash
# Real grammars in plain, fused and speculative generation: xgrammar and outlines' core.
#
#     bash tests/engines/grammars.sh [PYTHON]
#
# PYTHON is that of an environment with warpdraft and its test extra, by default .venv's. What passed,
# with versions, is written to tests/engines/results/grammars.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/engines/beside.sh

environment=build/engines/grammars
beside "${1:-.venv/bin/python}" "$environment" 'xgrammar==0.2.8' 'outlines_core==0.2.14'
PYTHONPATH=tests "$environment/bin/python" tests/engines/grammars.py tests/engines/results/grammars.json
