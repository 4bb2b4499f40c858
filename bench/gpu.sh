#!/usr/bin/env bash
# One whole visit to a GPU in under eight minutes: tests, correctness gate, benchmark, plots, sanitizer.
#
#     bash bench/gpu.sh OUT_DIR                  on a machine with a CUDA device
#     bash bench/gpu.sh OUT_DIR --device cpu     every step on tiny shapes
#     bash bench/gpu.sh OUT_DIR --pair           a second visit: a pair of real size, nothing else
#
# A part that fails is recorded in OUT_DIR/summary.txt and the rest goes on; the exit code is 1 if any
# failed. PYTHON names the interpreter (python3). Nothing is installed: where the checkout is not
# importable as `warpdraft`, a folder of links in OUT_DIR makes it so; without git, WARPDRAFT_COMMIT names
# the commit. To publish, copy OUT_DIR/kernels_cuda.csv to bench/results/ and run
# `python bench/kernel_table.py --write`.
set -euo pipefail

usage="usage: bash bench/gpu.sh OUT_DIR [--pair] [--device cuda|cpu]"
[ $# -ge 1 ] || { echo "$usage" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
device=cuda
pair=
shift
while [ $# -gt 0 ]; do
    case $1,$# in
    --pair,*) pair=yes ;;
    --device,1) echo "$usage" >&2; exit 2 ;;
    --device,*) device=$2; shift ;;
    *) echo "$usage" >&2; exit 2 ;;
    esac
    shift
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkout=$PWD
python=${PYTHON:-python3}
budget=${BUDGET:-470} # seconds for everything

# steps stop at their own limit or at the end of the visit, whichever comes first
failed=0
: >"$out/summary.txt"
: >"$out/log.txt"
rm -f "$out"/kernels_*.csv
step() { # name, limit in seconds, command
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    local left=$((budget - SECONDS))
    [ "$left" -lt "$limit" ] && limit=$left
    if [ "$limit" -lt 5 ]; then
        printf '%-28s skipped: no time left\n' "$name" | tee -a "$out/summary.txt"
        failed=1
        return
    fi
    printf '\n== %s: %s\n' "$name" "$*" >>"$out/log.txt"
    timeout --kill-after=5 "$limit" "$@" >>"$out/log.txt" 2>&1 || code=$?
    [ "$code" = 0 ] || failed=1
    printf '%-28s exit %-3s %4d s\n' "$name" "$code" $((SECONDS - start)) | tee -a "$out/summary.txt"
}
absent() { printf '%-28s skipped: %s\n' "$1" "$2" | tee -a "$out/summary.txt"; }

# the package: an editable install of this very checkout, or links to its folders
found=$(cd "$out" && "$python" -c 'import pathlib, warpdraft; print(pathlib.Path(warpdraft.__file__).resolve())' 2>>"$out/log.txt" || true)
if [ "$found" != "$checkout/decoders/__init__.py" ]; then
    "$python" - "$out/links" <<'PYTHON'
import pathlib
import shutil
import sys
import tomllib

links, root = pathlib.Path(sys.argv[1]), pathlib.Path.cwd()
shutil.rmtree(links, ignore_errors=True)
settings = tomllib.loads((root / "pyproject.toml").read_text())
for package, folder in settings["tool"]["setuptools"]["package-dir"].items():
    target = links.joinpath(*package.split("."))
    target.mkdir(parents=True, exist_ok=True)
    for file in (root / folder).iterdir():
        if file.is_file() or folder == "decoders/models":
            (target / file.name).symlink_to(file)
PYTHON
    export PYTHONPATH=$out/links${PYTHONPATH:+:$PYTHONPATH}
fi
if [ -n "$pair" ]; then
    sizes="--shape llama-8b --kept 4"
    [ "$device" = cuda ] || sizes="--shape tiny --kept 2 --new-tokens 16 --repeats 1"
    # shellcheck disable=SC2086
    step "a pair of real size" 460 "$python" bench/pair_speed.py --device "$device" --compiled $sizes \
        --json "$out/pair_$device.json"
    rm -rf "$out/links"
    sed -n '/^== a pair/,$p' "$out/log.txt"
    exit $failed
fi
bench() { # name, limit, arguments of `warpdraft bench kernels`
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$python" -m warpdraft.bench.cli bench kernels --device "$device" "$@"
}

# what is timed, the most wanted first; words of the options are meant to split
rows=top-h,top-h-mask,min-p,min-p-mask,four-rules,top-h-hot,top-p,top-p-mask,top-k,top-k-mask
blocks=k-seq,optimal,optimal-block
others=warpdraft,torch,hand,transformers,flashinfer,vllm
if [ "$device" = cpu ]; then
    small="--vocab 4000 --batch 2"
    ours="--vocab 4000 --batch 1,2 --cell-seconds 0.01"
    few=$ours
    wide="--vocab 5000 --batch 2 --cell-seconds 0.01"
    walked="--vocab 1000 --batch 1,2 --cell-seconds 0.01"
    beside="--vocab 4000 --batch 2 --cell-seconds 0.01"
    compiled=hand-compiled
else
    small="--vocab 20001 --batch 3"
    ours="--vocab 128256 --batch 1,64,128,512 --cell-seconds 0.1"
    few="--vocab 128256 --batch 1,128 --cell-seconds 0.1"
    wide="--vocab 151936 --batch 16,64,128 --cell-seconds 0.1"
    walked="--vocab 128256 --batch 1,8,32 --cell-seconds 0.1"
    beside="--vocab 128256 --batch 8,128 --cell-seconds 0.1"
    compiled=torch-compiled,hand-compiled
fi
main=top-h,top-h-mask,min-p,min-p-mask
parts=$out/parts
mkdir -p "$parts"

step "environment" 30 "$python" -m warpdraft.bench.cli env
if [ "$device" = cuda ]; then
    step "nvidia-smi" 10 nvidia-smi
    # most of the time is compilation, which workers share through Triton's cache; graphs and waits run alone
    step "pytest -m gpu" 130 "$python" -m pytest tests/gpu -m gpu -n 8 -q -p no:cacheprovider \
        --ignore tests/gpu/test_graphs.py --ignore tests/gpu/test_waiting.py
    step "pytest -m gpu, graphs" 70 "$python" -m pytest tests/gpu/test_graphs.py \
        tests/gpu/test_waiting.py -m gpu -n 0 -q -p no:cacheprovider
else
    absent "pytest -m gpu" "no GPU in a dry run"
fi
# shellcheck disable=SC2086
{
    # the gate alone, of every kernel, so that it is known even if a benchmark is cut short
    bench "gate, rows" 90 --check --keep-going --kernel $rows --provider warpdraft $small
    bench "gate, blocks" 60 --check --keep-going --kernel $blocks --provider warpdraft $small
    bench "four kernels" 80 --keep-going --seconds 60 --kernel $main --provider warpdraft $ours \
        --csv "$parts/1.csv" --plot "$out/roofline.png" --trace "$out/trace.json"
    bench "four kernels, bf16" 60 --keep-going --seconds 40 --kernel $main --dtype bfloat16 \
        --provider warpdraft $ours --csv "$parts/2.csv"
    bench "blocks" 90 --keep-going --seconds 60 --kernel $blocks --provider warpdraft,torch $walked \
        --csv "$parts/3.csv"
    bench "other rules" 60 --keep-going --seconds 40 --kernel four-rules,top-h-hot,top-p,top-k \
        --provider warpdraft $few --csv "$parts/4.csv"
    bench "beside others" 90 --keep-going --seconds 60 --kernel top-h,min-p,min-p-mask,top-p \
        --provider $others $beside --csv "$parts/5.csv"
    bench "min-p, V = 151,936" 40 --keep-going --seconds 25 --kernel min-p-mask \
        --provider warpdraft,hand $wide --csv "$parts/6.csv"
    bench "beside torch.compile" 110 --keep-going --seconds 60 --kernel min-p-mask,min-p,top-h \
        --provider warpdraft,$compiled ${beside/8,128/128} --csv "$parts/7.csv"
}
if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
    # its programs run many times slower: a vocabulary with a ragged last slice, a row
    step "compute-sanitizer" 60 compute-sanitizer --error-exitcode 9 "$python" -m warpdraft.bench.cli \
        bench kernels --device "$device" --check --kernel top-h,min-p-mask,top-h-hot,k-seq \
        --provider warpdraft --vocab 9001 --batch 2
else
    absent "compute-sanitizer" "not on this machine, or a dry run"
fi
if [ "$device" = cuda ] && command -v ncu >/dev/null; then
    # the counters of one one-read cell; the printed bound follows the command
    command=$("$python" -m warpdraft.bench.cli bench kernels --device "$device" --ncu --kernel min-p \
        --batch 64 --provider warpdraft 2>>"$out/log.txt") || command=false
    step "ncu" 60 bash -c "$command"
    echo "$command" | tail -n 1 >>"$out/log.txt"
else
    absent "ncu" "not on this machine, or a dry run"
fi

gzip --force --quiet "$out/trace.json" 2>/dev/null || true
for part in "$parts"/*.csv; do
    [ -e "$part" ] || continue
    # one header for all
    [ -s "$out/kernels_$device.csv" ] || head -n 1 "$part" >"$out/kernels_$device.csv"
    tail -n +2 "$part" >>"$out/kernels_$device.csv"
done
rm -rf "$parts" "$out/links"
printf '%-28s %s in %d s\n' "all of it" "$([ $failed = 0 ] && echo passed || echo 'with failures')" $SECONDS |
    tee -a "$out/summary.txt"
exit $failed
