"""ZeRO-1, -2 and -3 on one device: the same losses, memory against the plan, and a save behind the steps.

python benchmarks/gpu_zero.py [--model 1.3b] [--toy] [--record]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contestants import LR, RandomRows, Spec, open_llmtrain
from presets import PRESETS
from record import machine, publish

STEPS, BAND = 3, 1e-2  # bf16: kernels and sums round differently
STAGES = (1, 2, 3)


def facts(engine: Any, spec: Spec, step: int) -> Any:
    from llmtrain.checkpoint import CheckpointFacts

    return CheckpointFacts(
        step=step,
        tokens=step * spec.rows * spec.seq,
        topology={"world": 1, "pipeline": 1, "zero_stage": 1, "precision": spec.precision},
        dataset="random",
        config=spec.config,
        vocab_size=spec.config["vocab_size"],
        seq_len=spec.seq,
        rows=spec.rows,
        seed=engine.plan.run.seed,
        run_yaml="name: gpu-zero\n",
    )


def save(engine: Any, spec: Spec, folder: Path) -> dict[str, float]:
    """Two saves, the first of which pins the memory that both are copied to: stall and whole of each."""
    from llmtrain.checkpoint import Saver

    ends: list[Any] = []
    saver = Saver(engine, folder, 1, lambda step, tokens: facts(engine, spec, step), ends.append)
    told = {}
    for number, name in ((STEPS, "first"), (STEPS + 1, "second")):
        began = time.perf_counter()
        saver.save(number, number * spec.rows * spec.seq, wait=False)
        told[f"{name} save's stall s"] = time.perf_counter() - began
        saver.finish()
        told[f"{name} save s"] = time.perf_counter() - began
    return told


def one_stage(spec: Spec) -> dict[str, Any]:
    """What one stage did; the first one also saves."""
    from contestants import peaks

    from llmtrain.plan.memory import estimate
    from llmtrain.plan.model_shape import shape_of

    engine = open_llmtrain(spec)
    losses = [engine.train_step(RandomRows(spec, step), LR, step).loss for step in range(STEPS)]
    told: dict[str, Any] = {"losses": losses, "peak": peaks()["peak_bytes"]}
    shape = shape_of(spec.config)
    assert shape is not None, "a preset is a model whose shape is known"
    sizes = {"seq_len": spec.seq, "micro": spec.micro, "accumulation": spec.accumulation}
    told["planned"] = estimate(shape, engine.plan.deepspeed, dp=1, **sizes).device
    if spec.deepspeed == "zero1":
        told["save"] = save(engine, spec, Path(spec.folder) / "run")
    engine.close()
    return told


def measured(stage: int, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """`one_stage` in a process of its own; its failure as a sentence."""
    preset = PRESETS["tiny" if args.toy else args.model]
    spec = Spec(
        "llmtrain:auto", "", preset.config, preset.seq, preset.rows, preset.micro,
        0, STEPS, "bf16", f"zero{stage}", folder,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, "--spec", json.dumps(asdict(spec))], capture_output=True, text=True
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    print(done.stderr[-3000:], file=sys.stderr)
    return json.loads(found[-1].removeprefix("RESULT ")) if found else {"failed": done.stderr[-300:]}


def table(results: dict[int, dict[str, Any]]) -> str:
    lines = ["| ZeRO | losses | peak memory GiB | planned GiB | peak / planned |", "|---|---|---|---|---|"]
    for stage, told in results.items():
        if "failed" in told:
            lines.append(f"| {stage} | failed: `{' '.join(told['failed'].split())[-200:]}` | | | |")
            continue
        losses = ", ".join(f"{loss:.5f}" for loss in told["losses"])
        peak, planned = told["peak"] / 2**30, told["planned"] / 2**30
        lines.append(f"| {stage} | {losses} | {peak:.2f} | {planned:.2f} | {peak / planned:.2f} |")
    curves = [told["losses"] for told in results.values() if "losses" in told]
    apart = max(
        (abs(a - b) / b for curve in curves for a, b in zip(curve, curves[0], strict=True)), default=0
    )
    whole = len(curves) == len(results)
    verdict = "agree" if whole and apart <= BAND else "DISAGREE"
    lines += ["", f"Losses {verdict}: largest distance from ZeRO-1 {apart:.1e}, allowed {BAND:.0e}."]
    saved = results[STAGES[0]].get("save", {})
    if saved:
        lines.append(
            "A save of ZeRO-1: " + ", ".join(f"{name} {took:.3f}" for name, took in saved.items()) + "."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(PRESETS), default="1.3b")
    parser.add_argument("--toy", action="store_true", help="a model that a CPU runs in seconds")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/DEVICE-DATE.md")
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.spec:
        print("RESULT " + json.dumps(one_stage(Spec(**json.loads(args.spec)))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        results = {stage: measured(stage, args, folder) for stage in STAGES}
    command = shlex.join(["python", *(each for each in sys.argv if each != "--record")])
    publish("ZeRO stages on one device", command, f"{machine()}\n\n{table(results)}", args.record)


if __name__ == "__main__":
    main()
