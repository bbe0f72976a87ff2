"""Where the time of a step goes: the kernels that take most, the device's idle share, the host's waits.

    python benchmarks/gpu_profile.py [--model 1.3b] [--toy] [--record]

Profiles two steps of four micro-batches after two that are not. Without a GPU, operations of the CPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from contestants import LR, RandomRows, Spec, open_llmtrain
from presets import PRESETS
from record import machine, publish
from torch.profiler import ProfilerActivity, profile

STEPS, MICROS, MOST = 2, 4, 20
# Calls of CUDA in which the host waits for the device.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def profiled(spec: Spec) -> tuple[list[Any], float]:
    """The profiler's sums by name, and the seconds of the profiled steps."""
    engine = open_llmtrain(spec)
    on_gpu = torch.cuda.is_available()
    for step in range(2):
        engine.train_step(RandomRows(spec, step), LR, step)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        began = time.perf_counter()
        for step in range(2, 2 + STEPS):
            engine.train_step(RandomRows(spec, step), LR, step)
        if on_gpu:
            torch.cuda.synchronize()
        took = time.perf_counter() - began
    averages = list(seen.key_averages())
    engine.close()
    return averages, took


def table(averages: list[Any], took: float) -> str:
    on_gpu = torch.cuda.is_available()
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kind = "CUDA" if on_gpu else "CPU"
    kernels = [each for each in averages if str(each.device_type).endswith(kind) and getattr(each, field) > 0]
    kernels.sort(key=lambda each: -getattr(each, field))
    busy = sum(getattr(each, field) for each in kernels) / 1e6
    lines = [f"| {kind} | calls a step | ms a step | share of the step |", "|---|---|---|---|"]
    for each in kernels[:MOST]:
        ms = getattr(each, field) / 1e3 / STEPS
        name = each.key[:90].replace("|", "/")
        lines.append(f"| `{name}` | {each.count / STEPS:.0f} | {ms:.3f} | {ms * STEPS / took / 1e3:.1%} |")
    waits = {each.key: each.count for each in averages if each.key in WAITS}
    told = ", ".join(f"{name} {count / STEPS:.1f}" for name, count in sorted(waits.items())) or "none"
    lines += [
        "",
        f"Step {took / STEPS * 1e3:.1f} ms with the profiler on; idle {max(0.0, 1 - busy / took):.1%}.",
    ]
    lines += [f"Host's waits a step ({MICROS} micro-batches): {told}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(PRESETS), default="1.3b")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--toy", action="store_true", help="a model that a CPU runs in seconds")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/DEVICE-DATE.md")
    args = parser.parse_args()
    preset = PRESETS["tiny" if args.toy else args.model]
    preset = replace(preset, rows=preset.micro * MICROS)
    with tempfile.TemporaryDirectory() as folder:
        spec = Spec(
            f"llmtrain:{args.kernels}", "", preset.config, preset.seq, preset.rows, preset.micro,
            2, STEPS, "bf16", "zero1", folder,
        )  # fmt: skip
        body = table(*profiled(spec))
    command = shlex.join(["python", *(each for each in sys.argv if each != "--record")])
    publish("Profile of a step", command, f"{machine()}\n\n{body}", args.record)


if __name__ == "__main__":
    main()
