#!/usr/bin/env bash
# Our processor in SGLang's own code for processors, out of the released wheel. The engine needs a GPU;
# what calls a processor does not.
#
#     bash tests/engines/sglang.sh [PYTHON]
#
# PYTHON is that of an environment with warpdraft, by default .venv's. What passed, with versions, is
# written to tests/engines/results/sglang.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/engines/beside.sh

sglang_version=0.5.23
environment=build/engines/sglang
beside "${1:-.venv/bin/python}" "$environment" dill orjson
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$environment/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_34_x86_64 --dest "$scratch" "sglang==$sglang_version"
"$environment/bin/python" tests/engines/sglang_source.py "$scratch"/sglang-*.whl \
    tests/engines/results/sglang.json
