"""Step time of this project's engine beside a bare PyTorch loop and transformers.Trainer with DeepSpeed.

    python benchmarks/step_time.py --model 1.3b --seq 4096 --rows 16 --micro 4

Every contestant runs in its own process, one at a time, in rounds (A B C, A B C, …), so that a machine that
slows down slows them all. With --turns they live side by side and take turns step by step, which a noisy
machine needs and which asks for memory for all of them. Ratios are medians over rounds (or turns) of what
was measured next to each other. All start from the same weights and see the same rows; their loss curves
must agree, or the comparison is void and the exit status is 1. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from contestants import Spec
from presets import PRESETS, Preset
from record import device_name, machine, publish

from llmtrain.engine.environment import free_port
from llmtrain.plan.compute import flops_per_token, peak_flops
from llmtrain.plan.model_shape import shape_of

HERE = Path(__file__).parent
# How far two loss curves may lie apart, relative: bf16 has 8 bits, and kernels round differently.
LOSS_BAND = {"fp32": 1e-4, "bf16": 1e-2}

COLUMNS = (
    "contestant", "s/step, median", "min to max", "tokens/s", "× bare", "× tuned Trainer",
    "CPU s/step", "CPU × bare", "TFLOP/s FULL", "CAUSAL", "MFU FULL", "CAUSAL",
    "FULL of measured matmul", "peak memory GiB", "warm-up s",
)  # fmt: skip
LEGEND = (
    "`llmtrain:MODE`: this project's engine with `kernels: MODE`",
    "`bare`: fp32 weights under autocast; `bare:master`: bf16 weights and an fp32 copy, as DeepSpeed",
    "`trainer`: transformers.Trainer with the shortest DeepSpeed file; `trainer:tuned`: SDPA, fused AdamW, "
    "Liger on a GPU",
)


@dataclass(frozen=True)
class Round:
    """What one contestant did in one round."""

    losses: list[float]
    step_s: float
    cpu_s: float
    warmup_s: float
    peak_bytes: int
    reserved_bytes: int | None = None


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--seq", type=int, help="tokens per row")
    parser.add_argument("--rows", type=int, help="rows per optimizer step")
    parser.add_argument("--micro", type=int, help="rows per forward pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per round")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--deepspeed", default="zero1", help="zero0 to zero3, for llmtrain and for Trainer")
    parser.add_argument("--kernels", nargs="+", default=["auto"], help="llmtrain's kernel modes to time")
    parser.add_argument("--no-trainer", action="store_true")
    parser.add_argument("--turns", action="store_true", help="side by side, in turns of one step; one round")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="CPU threads (1 on a machine that others use too)"
    )
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one contestant's round")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/DEVICE-DATE.md")
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> Preset:
    """The preset with what the command line changes."""
    changes = {name: getattr(args, name) for name in ("seq", "rows", "micro") if getattr(args, name)}
    preset = replace(PRESETS[args.model], **changes)
    if preset.rows % preset.micro:
        raise SystemExit(f"--rows {preset.rows} is not a multiple of --micro {preset.micro}")
    return preset


def save_initial_weights(preset: Preset, folder: Path) -> None:
    """Random weights in bf16 that every contestant loads; drawn in a process of its own, which frees them."""
    code = (
        "import json, sys, torch, transformers\n"
        "config = transformers.AutoConfig.for_model(**json.loads(sys.argv[1]))\n"
        "torch.manual_seed(0)\n"
        "model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)\n"
        "model.save_pretrained(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, json.dumps(preset.config), str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def started(spec: Spec, args: argparse.Namespace) -> subprocess.Popen[str]:
    """A contestant in a fresh process."""
    path = Path(spec.folder) / "spec.json"
    path.write_text(json.dumps(asdict(spec)))
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["OMP_NUM_THREADS"] = str(args.threads)
    return subprocess.Popen(
        [sys.executable, str(HERE / "contestants.py"), str(path)],
        env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=open(Path(spec.folder) / f"{spec.contestant}.err", "w"),
    )  # fmt: skip


def rest(process: subprocess.Popen[str], spec: Spec, timeout: float) -> list[Round]:
    """What a contestant says at its end."""
    told, _ = process.communicate(timeout=timeout)
    results = [line for line in told.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not results:
        error = (Path(spec.folder) / f"{spec.contestant}.err").read_text()
        raise SystemExit(f"{spec.contestant} failed:\n{told[-2000:]}\n{error[-4000:]}")
    return [Round(**each) for each in json.loads(results[-1].removeprefix("RESULT "))]


def ready(process: subprocess.Popen[str]) -> None:
    """Returns when a contestant waits for its turn, or has ended."""
    assert process.stdout is not None, "started without a pipe"
    while (line := process.stdout.readline()) and line != "TURN\n":
        pass


def take_turns(specs: dict[str, Spec], args: argparse.Namespace) -> dict[str, list[Round]]:
    """All contestants side by side, each in turn for one step while the others sleep."""
    running: dict[str, subprocess.Popen[str]] = {}
    results: dict[str, list[Round]] = {}
    try:
        for name, spec in specs.items():
            running[name] = started(spec, args)
            ready(running[name])
            print(f"{name} is ready", file=sys.stderr, flush=True)
        for turn in range(args.steps):
            for name, process in running.items():
                assert process.stdin is not None, "started without a pipe"
                process.stdin.write("\n")
                process.stdin.flush()
                if turn + 1 < args.steps:
                    ready(process)
                else:
                    results[name] = rest(process, specs[name], args.timeout)
        return results
    finally:
        for process in running.values():
            process.kill()


def contestants(args: argparse.Namespace) -> list[str]:
    """Names, in the order in which a round runs them."""
    names = [f"llmtrain:{mode}" for mode in args.kernels] + ["bare", "bare:master"]
    return names + ([] if args.no_trainer else ["trainer", "trainer:tuned"])


def measure(args: argparse.Namespace, preset: Preset, folder: Path) -> tuple[dict[str, list[Round]], float]:
    """All rounds (or turns) of all contestants, and the device's matmul rate in FLOP/s."""
    weights = folder / "weights"
    save_initial_weights(preset, weights)
    base = Spec(
        "", str(weights), preset.config, preset.seq, preset.rows, preset.micro,
        args.warmup, args.steps, args.precision, args.deepspeed, str(folder), args.turns,
    )  # fmt: skip
    specs = {name: replace(base, contestant=name) for name in contestants(args)}
    rounds: dict[str, list[Round]] = {name: [] for name in specs}
    matmul = []
    for number in range(1 if args.turns else args.rounds):
        alone = replace(base, contestant="matmul", turns=False)
        matmul.append(rest(started(alone, args), alone, args.timeout)[0].losses[0])
        if args.turns:
            return take_turns(specs, args), matmul[0]
        for name, spec in specs.items():
            rounds[name] += rest(started(spec, args), spec, args.timeout)
            last = rounds[name][-1]
            told = f"{last.step_s:.4f} s/step, {last.cpu_s:.4f} s of CPU"
            print(f"round {number + 1}/{args.rounds} {name}: {told}", file=sys.stderr, flush=True)
    return rounds, statistics.median(matmul)


def faster(these: list[Round], than: list[Round] | None, kind: str = "step_s") -> str:
    """How much faster, as the median of the ratios within each round."""
    if than is None:
        return "-"
    pairs = zip(these, than, strict=True)
    return f"{statistics.median(getattr(other, kind) / getattr(this, kind) for this, other in pairs):.3f}"


def table(args: argparse.Namespace, preset: Preset, rounds: dict[str, list[Round]], matmul: float) -> str:
    """One line per contestant."""
    shape = shape_of(preset.config)
    assert shape is not None, "a preset is a model whose shape is known"
    full, causal = (flops_per_token(shape, preset.seq, convention) for convention in ("full", "causal"))
    peak = peak_flops(device_name(), args.precision)
    bare, tuned = rounds["bare"], rounds.get("trainer:tuned")
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, done in rounds.items():
        times = [round.step_s for round in done]
        median = statistics.median(times)
        rate = preset.rows * preset.seq / median
        cells = [name, f"{median:.4f}", f"{min(times):.4f} to {max(times):.4f}", f"{rate:,.0f}"]
        cpu = statistics.median(round.cpu_s for round in done)
        cells += [faster(done, bare), faster(done, tuned), f"{cpu:.4f}", faster(done, bare, "cpu_s")]
        cells += [f"{rate * full / 1e12:.4g}", f"{rate * causal / 1e12:.4g}"]
        cells += [f"{rate * flops / peak:.1%}" if peak else "-" for flops in (full, causal)]
        cells += [f"{rate * full / matmul:.1%}", memory(done)]
        cells += [f"{statistics.median(round.warmup_s for round in done):.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def memory(done: list[Round]) -> str:
    """Peak of all rounds in GiB; on a GPU also what the allocator had reserved."""
    allocated = f"{max(round.peak_bytes for round in done) / 2**30:.2f}"
    reserved = max(round.reserved_bytes or 0 for round in done) / 2**30
    return f"{allocated} ({reserved:.2f} reserved)" if reserved else allocated


def worst_disagreement(rounds: dict[str, list[Round]]) -> tuple[float, str]:
    """The largest relative distance of any contestant's loss curve from the bare loop's, and whose it is."""
    truth = rounds["bare"][0].losses
    apart = {
        name: max(abs(a - b) / abs(b) for round in done for a, b in zip(round.losses, truth, strict=True))
        for name, done in rounds.items()
    }
    name = max(apart, key=lambda key: apart[key])
    return apart[name], name


def notes(args: argparse.Namespace, preset: Preset, matmul: float, agreement: str) -> str:
    """What one must know to read the table, or to repeat it."""
    peak = peak_flops(device_name(), args.precision)
    said = (
        f"{peak / 1e12:,.1f} TFLOP/s (dense, from the data sheet)" if peak else "none known for this device"
    )
    order = (
        f"the contestants side by side, in turns of one step, {args.steps} turns after {args.warmup} steps"
        if args.turns
        else f"{args.rounds} rounds, each contestant in its own process; {args.warmup} steps of warm-up, "
        f"then {args.steps} timed"
    )
    lines = [
        f"model `{args.model}`, {args.precision}, DeepSpeed `{args.deepspeed}`, 1 rank; {preset.rows} rows "
        f"of {preset.seq} tokens per step, {preset.micro} per forward pass; random tokens, no recomputation",
        f"{order}; {args.threads} CPU threads each; ratios are medians of those within a round or turn",
        f"FULL = 6N + 12·L·d·s FLOP per token, CAUSAL = 6N + 6·L·d·s; peak {said}; "
        f"matmul rate measured beside them {matmul / 1e12:.4g} TFLOP/s",
        *LEGEND,
        agreement,
    ]
    return "\n".join(f"- {line}" for line in lines)


def main() -> int:
    """Measures, prints, and answers 1 when the loss curves disagree."""
    args = parse()
    preset = chosen(args)
    with tempfile.TemporaryDirectory() as folder:
        rounds, matmul = measure(args, preset, Path(folder))
    apart, name = worst_disagreement(rounds)
    band = LOSS_BAND[args.precision]
    agree = apart <= band
    verdict = "the loss curves agree" if agree else "VOID: the loss curves disagree"
    last = ", ".join(f"{key} {done[0].losses[-1]:.5f}" for key, done in rounds.items())
    agreement = (
        f"{verdict} (largest distance from bare {apart:.1e}, {name}; allowed {band:.0e}); last losses: {last}"
    )
    body = "\n\n".join([table(args, preset, rounds, matmul), notes(args, preset, matmul, agreement)])
    command = shlex.join(["python", *(argument for argument in sys.argv if argument != "--record")])
    publish("Step time", command, f"{machine()}\n\n{body}", args.record)
    return 0 if agree else 1


if __name__ == "__main__":
    raise SystemExit(main())
