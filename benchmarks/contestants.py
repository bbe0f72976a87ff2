"""Who is timed: this project's engine, a bare PyTorch loop, and transformers.Trainer with DeepSpeed.

Each takes the same initial weights, the same rows in the same order, AdamW with the same settings and the
same clipping, and runs in a process of its own: `python contestants.py SPEC.json` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LR, BETAS, EPS, DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
IGNORED = -100


@dataclass(frozen=True)
class Spec:
    """One contestant's job. `weights` is a Hugging Face folder in bf16: all start from equal numbers."""

    contestant: str
    weights: str
    config: dict[str, Any]
    seq: int
    rows: int
    micro: int
    warmup: int
    steps: int
    precision: str
    deepspeed: str
    folder: str
    turns: bool = False  # wait for a line on stdin before each timed step, so that others run in between

    @property
    def accumulation(self) -> int:
        """Micro-batches per step."""
        return self.rows // self.micro


class RandomRows:
    """Random tokens, a function of the step. Never zeros: their matmuls run faster than real ones."""

    def __init__(self, spec: Spec, step: int):
        self.count, self.seq_len = spec.rows, spec.seq
        self.valid_tokens = spec.rows * (spec.seq - 1)
        generator = np.random.default_rng([77, step])
        self.tokens = generator.integers(1, spec.config["vocab_size"], (spec.rows, spec.seq), dtype=np.int64)

    def read(self, start: int, stop: int) -> Any:
        """The rows as the engine takes them. The last position of a row has no label, as in transformers."""
        from llmtrain.data.rows import RowArrays

        tokens = self.tokens[start:stop]
        labels = np.full_like(tokens, IGNORED)
        labels[:, :-1] = tokens[:, 1:]
        positions = np.broadcast_to(np.arange(self.seq_len), tokens.shape).copy()
        return RowArrays(tokens, labels, positions)


class Stopwatch:
    """Wall and CPU time of the steps after the warm-up; the device is waited for at both ends, not between.

    CPU time (of all threads) is what counts on a machine that others use too, with one thread. Taking turns,
    every timed step is measured alone, from the line that allows it to its end.
    """

    def __init__(self, spec: Spec):
        self.warmup, self.last, self.turns = spec.warmup, spec.warmup + spec.steps, spec.turns
        self.began = self.cpu_began = self.warm_s = 0.0
        self.start = time.perf_counter()
        self.seconds: list[float] = []  # per step: one entry, or one per turn
        self.cpu_seconds: list[float] = []

    def after_step(self, done: int) -> None:
        """Called after each step with how many are done."""
        import torch

        if not (done in (self.warmup, self.last) or (self.turns and self.warmup < done < self.last)):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now, cpu = time.perf_counter(), time.process_time()
        if done == self.warmup:
            self.warm_s = now - self.start
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        else:
            steps = 1 if self.turns else self.last - self.warmup
            self.seconds.append((now - self.began) / steps)
            self.cpu_seconds.append((cpu - self.cpu_began) / steps)
        if self.turns and done < self.last:
            print("\nTURN", flush=True)
            sys.stdin.readline()
            now, cpu = time.perf_counter(), time.process_time()
        self.began, self.cpu_began = now, cpu


def peaks() -> dict[str, int]:
    """Peak memory since the warm-up on a GPU; the process's peak resident set on a CPU."""
    import torch

    if torch.cuda.is_available():
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_bytes": allocated, "reserved_bytes": reserved}
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def open_llmtrain(spec: Spec) -> Any:
    """This project's engine for the job; the kernels mode is in the contestant's name."""
    import yaml

    from llmtrain.config.load import load_run
    from llmtrain.config.world import World
    from llmtrain.engine import detect_device, open_engine
    from llmtrain.model.build import hf_config
    from llmtrain.model.weights import WeightFiles
    from llmtrain.plan.plan import make_plan

    run = {
        "name": "step-time",
        "output_dir": spec.folder,
        "model": {"config": spec.config},
        "data": {"train": [{"path": "random"}], "seq_len": spec.seq, "mask_documents": False},
        "batch": {"rows": spec.rows, "micro": spec.micro},
        "schedule": {"steps": spec.warmup + spec.steps, "warmup": 0, "decay": "constant"},
        "optimizer": {"lr": LR, "betas": list(BETAS), "eps": EPS, "weight_decay": DECAY, "clip": CLIP},
        "precision": spec.precision,
        "deepspeed": spec.deepspeed,
        "kernels": spec.contestant.partition(":")[2] or "auto",
    }
    path = Path(spec.folder) / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    plan = make_plan(load_run(path), 1, detect_device())
    config = hf_config(plan.run.model, spec.config["vocab_size"])
    weights = WeightFiles(spec.weights) if spec.weights else None
    return open_engine(plan, config, World(0, 1, 0, 1, "none"), weights=weights)


def llmtrain_engine(spec: Spec, watch: Stopwatch) -> list[float]:
    """`open_engine` and `train_step`, as the training loop calls them."""
    engine, losses = open_llmtrain(spec), []
    watch.start = time.perf_counter()
    for step in range(spec.warmup + spec.steps):
        losses.append(engine.train_step(RandomRows(spec, step), LR).loss)
        watch.after_step(step + 1)
    return losses


def parameter_groups(model: Any) -> list[dict[str, Any]]:
    """Weight decay on matrices only."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def bare_loop(spec: Spec, watch: Stopwatch) -> list[float]:
    """The loop one writes by hand. `bare`: fp32 weights under bf16 autocast. `bare:master`: bf16 weights and
    an fp32 copy of them that the optimizer moves, which is the arithmetic of DeepSpeed's bf16 mode.
    """  # fmt: skip
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    master = spec.contestant == "bare:master"
    dtype = torch.bfloat16 if master else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec.weights, dtype=dtype, attn_implementation="sdpa").to(
        device
    )
    model.train()
    moved = (
        torch.nn.ParameterList([p.detach().float().clone() for p in model.parameters()]) if master else model
    )
    optimizer = torch.optim.AdamW(parameter_groups(moved), lr=LR, betas=BETAS, eps=EPS, fused=True)
    autocast = torch.autocast(device, torch.bfloat16, enabled=spec.precision == "bf16" and not master)
    losses = []
    watch.start = time.perf_counter()
    for step in range(spec.warmup + spec.steps):
        rows, total = RandomRows(spec, step), torch.zeros((), device=device)
        for start in range(0, spec.rows, spec.micro):
            part = rows.read(start, start + spec.micro)
            tokens, labels = (torch.from_numpy(a).to(device) for a in (part.tokens, part.labels))
            with autocast:
                logits = model(input_ids=tokens).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
            (loss / spec.accumulation).backward()
            total += loss.detach() / spec.accumulation
            if master:
                collect(model, moved)
        torch.nn.utils.clip_grad_norm_(moved.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if master:
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), list(moved.parameters()))
        losses.append(float(total))
        watch.after_step(step + 1)
    return losses


def collect(model: Any, moved: Any) -> None:
    """Adds the bf16 gradients of a micro-batch to the fp32 copy's."""
    for low, high in zip(model.parameters(), moved.parameters(), strict=True):
        high.grad = low.grad.float() if high.grad is None else high.grad.add_(low.grad)
        low.grad = None


def trainer(spec: Spec, watch: Stopwatch) -> list[float]:
    """transformers.Trainer with DeepSpeed.

    `trainer`: its defaults and the shortest DeepSpeed file that works. `trainer:tuned`: SDPA, fused AdamW,
    Liger kernels on a GPU, large buckets, no per-step work besides training.
    """
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback
    from transformers import Trainer as HubTrainer

    join_world()
    tuned = spec.contestant == "trainer:tuned"
    arguments = trainer_arguments(spec, tuned)
    attention = {"attn_implementation": "sdpa"} if tuned else {}
    model = AutoModelForCausalLM.from_pretrained(spec.weights, dtype=torch.float32, **attention)
    losses: list[Any] = []

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            watch.after_step(state.global_step)

    class Listening(HubTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            losses.append(super().training_step(*args, **kwargs))
            return losses[-1]

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    Listening(model=model, args=arguments, train_dataset=TrainerRows(spec), callbacks=[Timed()]).train()
    # Trainer returns each micro-batch's loss already divided by the accumulation: their sum is the step's.
    per_step = torch.stack([loss.float().cpu() for loss in losses]).view(-1, spec.accumulation).sum(dim=1)
    return per_step.tolist()


class TrainerRows:
    """The same rows as a map-style dataset; row i belongs to step i // rows."""

    def __init__(self, spec: Spec):
        self.spec, self.step = spec, -1
        self.rows = np.empty((0, 0), dtype=np.int64)

    def __len__(self) -> int:
        return self.spec.rows * (self.spec.warmup + self.spec.steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        if index // self.spec.rows != self.step:
            self.step = index // self.spec.rows
            self.rows = RandomRows(self.spec, self.step).tokens
        row = torch.from_numpy(self.rows[index % self.spec.rows])
        return {"input_ids": row, "labels": row}


def join_world() -> None:
    """One rank, gloo without a GPU, and none of DeepSpeed's ops built on the way (they take minutes)."""
    from llmtrain.config.world import World
    from llmtrain.engine import detect_device, start

    start(World(0, 1, 0, 1, "none"), detect_device())
    import accelerate.state

    original = accelerate.state.PartialState.__init__

    def with_backend(self: Any, cpu: bool = False, **options: Any) -> None:
        if detect_device() == "cpu" and not cpu:
            options.setdefault("backend", "gloo")
        original(self, cpu, **options)

    accelerate.state.PartialState.__init__ = with_backend


def trainer_arguments(spec: Spec, tuned: bool) -> Any:
    """TrainingArguments with a DeepSpeed configuration inside.

    On a CPU they refuse bf16 beside DeepSpeed, although both can do it; the check is answered for them.
    """
    import torch
    import transformers.training_args
    from transformers import TrainingArguments

    on_gpu, low = torch.cuda.is_available(), spec.precision == "bf16"
    if not on_gpu:
        transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": int(spec.deepspeed.removeprefix("zero"))},
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
    }
    extra: dict[str, Any] = {}
    if tuned:
        config["zero_optimization"] |= {"overlap_comm": on_gpu, "reduce_bucket_size": int(5e8)}
        config["steps_per_print"] = 1_000_000
        extra = {"optim": "adamw_torch_fused", "use_liger_kernel": on_gpu, "dataloader_pin_memory": on_gpu}
    return TrainingArguments(
        output_dir=spec.folder,
        per_device_train_batch_size=spec.micro,
        gradient_accumulation_steps=spec.accumulation,
        max_steps=spec.warmup + spec.steps,
        learning_rate=LR,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        lr_scheduler_type="constant",
        bf16=low,
        deepspeed=config,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **extra,
    )


def matmul_rate(spec: Spec, watch: Stopwatch) -> list[float]:
    """bf16 FLOP/s of a large product of random matrices: what this device gives, whatever is promised."""
    import torch

    on_gpu = torch.cuda.is_available()
    size, device = (8192, "cuda") if on_gpu else (2048, "cpu")
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in "ab")
    best = float("inf")
    for _ in range(5):
        repeats = 50 if on_gpu else 3
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / repeats)
    return [2 * size**3 / best]


CONTESTANTS: dict[str, Callable[[Spec, Stopwatch], list[float]]] = {
    "llmtrain": llmtrain_engine,
    "bare": bare_loop,
    "trainer": trainer,
    "matmul": matmul_rate,
}


def main() -> None:
    """Runs one contestant; the last line on stdout is its result."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text()))
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "0"):
        os.environ["DS_ACCELERATOR"] = "cpu"
    watch = Stopwatch(spec)
    losses = CONTESTANTS[spec.contestant.partition(":")[0]](spec, watch)
    result = {"losses": losses, "warmup_s": watch.warm_s, **peaks()}
    times = zip(watch.seconds, watch.cpu_seconds, strict=True)
    rounds = [{**result, "step_s": wall, "cpu_s": cpu} for wall, cpu in times]
    print("\nRESULT " + json.dumps(rounds or [{**result, "step_s": 0.0, "cpu_s": 0.0}]), flush=True)
    os._exit(0)  # leaving DeepSpeed's and gloo's threads to a regular exit can take seconds


if __name__ == "__main__":
    main()
