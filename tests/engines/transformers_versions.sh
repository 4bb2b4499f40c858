#!/usr/bin/env bash
# The tests of the transformers integration with the oldest supported and the newest tested transformers.
#
#     bash tests/engines/transformers_versions.sh [PYTHON [VERSION...]]
#
# PYTHON is that of an environment with warpdraft and its test extra, by default .venv's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/engines/beside.sh

base=${1:-.venv/bin/python}
versions=("${@:2}")
[[ $# -gt 1 ]] || versions=(5.17.0 5.23.0)
for version in "${versions[@]}"; do
    environment=build/engines/transformers-$version
    beside "$base" "$environment" "transformers==$version"
    echo "transformers $version"
    "$environment/bin/python" -m pytest -q tests/test_processors.py tests/test_transformers_*.py \
        tests/test_custom_generate_folder.py tests/test_loop.py
done
