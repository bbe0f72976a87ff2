"""`llmtrain plan`: what a run will be, in numbers, before any hardware is touched and without torch."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.load import load_run
from llmtrain.config.schema import ModelSection, RunConfig
from llmtrain.data.batches import Batches
from llmtrain.errors import ConfigError, DataError, Problem
from llmtrain.plan.advice import advice
from llmtrain.plan.begun import has_begun
from llmtrain.plan.compute import PEAK_TFLOPS, flops_per_token, peak_flops
from llmtrain.plan.host_memory import COPY_SHARE, available_bytes
from llmtrain.plan.memory import USABLE, Memory, estimate, kept_by
from llmtrain.plan.model_place import check_places
from llmtrain.plan.model_rules import id_problems, length_note, length_problem
from llmtrain.plan.model_shape import ModelShape, shape_of
from llmtrain.plan.plan import Plan, make_plan
from llmtrain.plan.prepared import epoch_rows
from llmtrain.report.changes import leaves
from llmtrain.report.progress import duration, gibibytes

# Memory of one device in bytes, by the names of plan.compute.PEAK_TFLOPS (vendors' data sheets).
DEVICE_GB = {
    "GB200": 186,
    "B200": 180,
    "B100": 180,
    "H200": 141,
    "GH200": 96,
    "H100 PCIE": 80,
    "H100 NVL": 94,
    "H100": 80,
    "H800": 80,
    "H20": 96,
    "A100": 80,
    "A800": 80,
    "A40": 48,
    "A30": 24,
    "A10G": 24,
    "A10": 24,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
    "V100": 32,
    "T4": 16,
    "RTX 6000 ADA": 48,
    "RTX A6000": 48,
    "RTX 5090": 32,
    "RTX 4090": 24,
    "RTX 3090": 24,
    "MI355X": 288,
    "MI325X": 256,
    "MI300X": 192,
    "MI250X": 128,
}
ASSUMED_VOCAB = 50_304  # GPT-2's, rounded up; memory and compute depend on it only a little
RANKS_OF_A_MACHINE = 8  # as most GPU machines have; fewer if the run has fewer
LIKELY_MFU = 0.4  # what a well-fed GPU reaches at these sizes; the estimate of time says that it assumes it


@dataclass(frozen=True)
class SourceShare:
    """What a run takes from one source, over its whole length."""

    name: str
    rows: int
    share: float
    epochs: float

    def __str__(self) -> str:
        return f"{self.name}: {self.share:.2%} = {self.rows:,} rows = {self.epochs:.2f} epochs"


@dataclass(frozen=True)
class Planned:
    """A plan, and what follows from it where the model's sizes are known."""

    plan: Plan
    device: str
    shape: ModelShape | None
    memory: Memory | None
    device_bytes: int | None
    epoch_tokens: int | None
    shares: tuple[SourceShare, ...]
    packed: str  # what the packing makes of the data, in words
    note: str  # what the user should know of the model, empty for nothing
    unknown: tuple[str, ...]  # sentences: what could not be worked out, and why
    warnings: tuple[str, ...] = ()  # sentences: what is hardly meant

    @property
    def tokens(self) -> int:
        """Token positions of the whole run."""
        return self.plan.schedule.steps * self.plan.tokens_per_step

    @property
    def fits(self) -> bool | None:
        """Whether a rank's part fits on the device; None where that is unknown."""
        if self.memory is None or self.device_bytes is None:
            return None
        return self.memory.device <= USABLE * self.device_bytes

    def flops(self) -> dict[str, float] | None:
        """Operations per token by convention, when the model's sizes are known."""
        if self.shape is None:
            return None
        length = self.plan.run.data.seq_len
        return {
            "6N+12Lds": flops_per_token(self.shape, length, "full"),
            "6N+6Lds": flops_per_token(self.shape, length, "causal"),
        }

    def as_json(self) -> str:
        """One JSON object."""
        plan, run, flops = self.plan, self.plan.run, self.flops()
        content = {
            "name": run.name,
            "device": self.device,
            "ranks": plan.topology.world,
            "batch": asdict(plan.batch),
            "steps": plan.schedule.steps,
            "tokens_per_step": plan.tokens_per_step,
            "tokens": self.tokens,
            "epoch_tokens": self.epoch_tokens,
            "sources": [asdict(share) for share in self.shares],
            "parameters": self.shape.parameters if self.shape else None,
            "memory_bytes_per_rank": asdict(self.memory) if self.memory else None,
            "fits": self.fits,
            "flops_per_token": flops,
            "run": run.model_dump(mode="json"),
            "deepspeed": plan.deepspeed,
            "origins": dict(plan.origins),
            "note": self.note,
            "unknown": list(self.unknown),
            "warnings": list(self.warnings),
        }
        return json.dumps(content, indent=2)

    def as_text(self, origins: bool = False) -> str:
        """A page for a person; with `origins`, every value with where it came from below it."""
        plan, run = self.plan, self.plan.run
        batch, schedule = plan.batch, plan.schedule
        where = f"{plan.topology.world} × {self.device}"
        lines = [f"{run.name} on {where}: {run.deepspeed}, {plan.topology.pipeline} pipeline stage(s)", ""]
        rows = [
            (
                "step",
                f"{batch.rows} rows × {run.data.seq_len} tokens = {plan.tokens_per_step:,} tokens\n"
                f"{batch.places} rows = {batch.split} (micro: {plan.origins.get('batch.micro', '')})",
            ),
            (
                "run",
                f"{schedule.steps:,} steps = {self.tokens:,} tokens{self._epochs()}\n"
                "learning rate: "
                f"{schedule.warmup_steps} steps up to {schedule.peak_lr:g}, {schedule.decay} to "
                f"{schedule.min_lr:g}",
            ),
            ("data", "\n".join([*map(str, self.shares), *self.packed.splitlines()])),
            ("model", self._model()),
            ("memory", self._memory()),
            ("compute", self._compute()),
        ]
        for name, text in rows:
            for index, line in enumerate(text.splitlines()):
                lines.append(f"{name if index == 0 else '':<9}{line}")
        lines += [f"{'unknown':<9}{sentence}" for sentence in self.unknown]
        lines += [f"{'WARNING':<9}{sentence}" for sentence in self.warnings]
        more = self._origins() if origins else ["(every value and where it came from: --origins)"]
        return "\n".join([*lines, "", *more])

    def _epochs(self) -> str:
        return f" = {self.tokens / self.epoch_tokens:.2f} epochs" if self.epoch_tokens else ""

    def _model(self) -> str:
        shape = self.shape
        if shape is None:
            return ""
        active = f", {shape.active_matmul_parameters:,} at work on a token" if shape.experts > 1 else ""
        text = f"about {shape.parameters:,} parameters{active}, {shape.layers} layers of {shape.hidden}"
        return "\n".join([text, *([self.note] if self.note else [])])

    def _memory(self) -> str:
        memory = self.memory
        if memory is None:
            return ""
        parts = {name: size for name, size in asdict(memory).items() if name not in ("host", "copy") and size}
        text = f"about {gibibytes(memory.device)} per rank: "
        text += ", ".join(f"{name} {gibibytes(size)}" for name, size in parts.items())
        if memory.host:
            text += f"\nand {gibibytes(memory.host)} of main memory for what is offloaded"
        text += f"\n{self._saving(memory.copy)}"
        if self.device_bytes:
            verdict = "fits" if self.fits else "DOES NOT FIT"
            text += f"\n{verdict}: {USABLE:.0%} of {gibibytes(self.device_bytes)} can be used"
        return text

    def _saving(self, copy: int) -> str:
        """What saving behind the steps takes, and what becomes of it where this machine is too small."""
        text = f"and {gibibytes(copy)} of main memory for the copy from which a save is written meanwhile"
        ranks, free = min(self.plan.topology.world, RANKS_OF_A_MACHINE), available_bytes()
        if free is not None and copy * ranks > COPY_SHARE * free:
            text += (
                f"\n{ranks} such ranks need {gibibytes(copy * ranks)}, of which this machine has "
                f"{gibibytes(free)} free: on it each save would stop the steps until it is on disk"
            )
        return text

    def _compute(self) -> str:
        flops = self.flops()
        if flops is None:
            return ""
        text = ", ".join(f"{value / 1e6:,.1f} MFLOP ({name})" for name, value in flops.items()) + " per token"
        text += f"\n{flops['6N+12Lds'] * self.tokens:.3g} FLOP in all"
        peak = peak_flops(self.device, self.plan.run.precision)
        if peak:
            rate = peak * self.plan.topology.world * LIKELY_MFU / flops["6N+12Lds"]
            used = f"{LIKELY_MFU:.0%} of {peak / 1e12:,.0f} TFLOP/s"
            text += f"\nabout {duration(self.tokens / rate)} if {used} are used"
        return text

    def _origins(self) -> list[str]:
        values = leaves(self.plan.run.model_dump(mode="json"))
        values |= {f"ds.{name}": value for name, value in leaves(self.plan.deepspeed).items()}
        known = {name: value for name, value in values.items() if value is not None}
        width = max(len(f"{name} = {value}") for name, value in known.items() if len(str(value)) < 40)
        return [
            f"{f'{name} = {value}':<{width}}  {self.plan.origins.get(name, '')}".rstrip()
            for name, value in known.items()
        ]


def planned(path: str, overrides: Sequence[str], ranks: int, device: str) -> Planned:
    """Plans a run for `ranks` of a device: "cpu", "cuda" (some GPU), or a GPU's name such as "h200".

    Works before the dataset is built; then what depends on it is named as unknown. Raises ConfigError.
    """
    loaded = load_run(path, overrides)
    check_places(loaded)
    kind, size = _device(device)
    unknown: list[str] = []
    begun, rows = has_begun(loaded.config.folder), epoch_rows(loaded)
    plan = make_plan(loaded, ranks, kind, goes_on=begun, epoch_rows=rows)
    batches = _batches(plan, unknown)
    config = _model_config(loaded.config.model, unknown)
    wrong = id_problems(loaded, batches.vocab_size if batches else None)
    too_long = length_problem(loaded, dict(config))  # of a Hub's model; of the others the plan has told
    if wrong or too_long:
        raise ConfigError([*wrong, *([too_long] if too_long else [])])
    new = loaded.config.model.config is not None
    shape = shape_of(config, batches.vocab_size if batches and new else None)
    if shape is None and new and batches is None:
        shape = shape_of(config, ASSUMED_VOCAB)
        unknown.append(f"vocabulary: taken as {ASSUMED_VOCAB:,} tokens until the dataset is built")
    plan = make_plan(loaded, ranks, kind, device_memory=size, shape=shape, goes_on=begun, epoch_rows=rows)
    memory = None
    if shape is not None:
        run = plan.run
        memory = estimate(
            shape,
            plan.deepspeed,
            dp=plan.topology.dp,
            pipeline=plan.topology.pipeline,
            seq_len=run.data.seq_len,
            micro=plan.batch.micro,
            accumulation=plan.batch.accumulation,
            recompute=run.recompute,
            kept=kept_by(run.kernels, kind),
        )
    name = "CPU" if kind == "cpu" else device.upper()
    epoch = batches.tokens_per_epoch if batches else None
    shares = _shares(plan, batches) if batches else ()
    note = length_note(dict(config), plan.run.data.seq_len)
    warnings = tuple(advice(plan, batches))
    told = _packed(batches), note, tuple(unknown), warnings
    return Planned(plan, name, shape, memory, size, epoch, shares, *told)


def _device(name: str) -> tuple[str, int | None]:
    """("cpu" or "cuda", bytes of memory when known). Raises ConfigError for a device nobody knows."""
    if name.lower() in ("cpu", "cuda", "gpu"):
        return ("cpu" if name.lower() == "cpu" else "cuda"), None
    for known, _ in PEAK_TFLOPS:
        if re.search(rf"\b{known}\b", name.upper().replace("-", " ").replace("_", " ")):
            return "cuda", DEVICE_GB[known] * 10**9
    names = ["cpu", *(known.lower() for known, _ in PEAK_TFLOPS)]
    spellings = (name.lower(), name.lower().translate(str.maketrans("oil", "011")))  # h2oo
    near = next(filter(None, (difflib.get_close_matches(each, names, n=2) for each in spellings)), [])
    fix = f"did you mean {' or '.join(map(repr, near))}?" if near else "cpu, or a GPU: a100, h100, l40s, …"
    raise ConfigError(Problem("--device", name, "command line", fix))


def _batches(plan: Plan, unknown: list[str]) -> Batches | None:
    run: RunConfig = plan.run
    try:
        return Batches.of_run(run.data, plan.batch.rows, run.seed, plan.schedule.steps, plan.origins)
    except DataError as error:
        unknown.append(f"epochs: {error}")
        return None


def _shares(plan: Plan, batches: Batches) -> tuple[SourceShare, ...]:
    rows = plan.schedule.steps * plan.batch.rows
    given = zip(plan.run.data.train, batches.course.given(rows), batches.rows_of_sources, strict=True)
    return tuple(SourceShare(source.label, got, got / rows, got / epoch) for source, got, epoch in given)


def _packed(batches: Batches | None) -> str:
    """What is cropped, left over or padded, which is next to nothing for plain concatenation; and what
    becomes of conversations that do not fit."""
    if batches is None:
        return ""
    if batches.packing == "concat":
        return "\n".join(batches.notes)
    lines = (
        f"{batches.rows_per_epoch:,} rows by {batches.packing}: {batches.padded:.3%} of them padding, "
        f"{batches.lost:.3%} of the tokens cropped"
    )
    return "\n".join([lines, *batches.notes])


def _model_config(model: ModelSection, unknown: list[str]) -> Mapping[str, Any]:
    """The model's configuration as it stands in the run or in its source's config.json; empty without."""
    if model.config is not None:
        return model.config
    assert model.source is not None, "the schema wants a source or a config"
    path = Path(model.source, "config.json").expanduser()
    try:
        if not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(model.source, "config.json"))
        content = json.loads(path.read_text(encoding="utf-8"))
        return content.get("text_config", content) if isinstance(content, dict) else {}
    except Exception as error:  # noqa: BLE001 - no network, no such model: the plan stands without it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        unknown.append(f"memory and compute: the configuration of {model.source} can't be read ({reason})")
        return {}
