#!/usr/bin/env bash
# The whole GPU path on one card in about ten minutes, unattended:
#
#   OUT=/somewhere benchmarks/gpu_session.sh
#
# imports, tests/gpu, kernels, a profile, step times, ZeRO stages and a save. Each part has a limit and none stops
# the others. Under $OUT: parts.txt (what each part's end was, and its seconds), log.txt (all that was printed),
# junit.xml, and DEVICE-DATE.md, the tables: to be copied to benchmarks/results/ and committed.
# TOY=1 rehearses every part on a CPU, at sizes that take seconds.  PYTHON=python3.12 takes another interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT="$(mkdir -p "${OUT:-runs/gpu-session}" && cd "${OUT:-runs/gpu-session}" && pwd)"
PYTHON="${PYTHON:-python3}"
TOY="${TOY:-}"
export BENCHMARK_RESULTS="$OUT" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
: >"$OUT/parts.txt"
: >"$OUT/log.txt"

# part NAME SECONDS COMMAND…: runs it for at most so long, notes how it ended, and goes on
part() {
  local name="$1" limit=$(($2 * slower)) began=$SECONDS status=0
  shift 2
  printf '\n===== %s: %s\n' "$name" "$*" >>"$OUT/log.txt"
  timeout -k 10 "$limit" "$@" >>"$OUT/log.txt" 2>&1 || status=$?
  [ "$status" = 124 ] && status="124 (over its limit of $limit s)"
  printf '%-12s exit %s, %d s\n' "$name" "$status" $((SECONDS - began)) | tee -a "$OUT/parts.txt"
}

if [ -n "$TOY" ]; then
  small="--toy" first="tiny" second="tiny" modes="auto" tests="-q"
  steps="--steps 1 --warmup 1 --rounds 1 --threads 1 --no-trainer"
  slower=6 OMP_NUM_THREADS=1 # a busy machine may take its time
  export OMP_NUM_THREADS
else
  slower=1
  small="" first="1.3b" second="125m" modes="auto fused" tests="-q -n 4"
  steps="--steps 5 --warmup 2 --rounds 1 --timeout 60 --no-trainer"
  export DS_ACCELERATOR=cuda
fi

# the words of these variables are options, one by one
# shellcheck disable=SC2086
{
  command -v nvidia-smi >/dev/null && part device 10 nvidia-smi
  part imports 30 "$PYTHON" -c 'from llmtrain.report.environment import versions; import deepspeed, llmtrain.train
import llmtrain.engine.opening; print(versions())'
  part tests 120 "$PYTHON" -m pytest tests/gpu $tests -p no:cacheprovider --junitxml "$OUT/junit.xml"
  part kernels 35 "$PYTHON" benchmarks/gpu_kernels.py $small --record
  part head-loss 30 "$PYTHON" benchmarks/head_loss.py --record
  part profile 50 "$PYTHON" benchmarks/gpu_profile.py $small --record
  part step-first 170 "$PYTHON" benchmarks/step_time.py --model "$first" --kernels $modes $steps --record
  part step-second 75 "$PYTHON" benchmarks/step_time.py --model "$second" --kernels auto $steps --record
  part zero 80 "$PYTHON" benchmarks/gpu_zero.py $small --record
}

printf '\n'
for tables in "$OUT"/*.md; do [ -f "$tables" ] && cat "$tables"; done
printf '\n'
cat "$OUT/parts.txt"
exit 0
