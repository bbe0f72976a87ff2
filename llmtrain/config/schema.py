"""The run as one typed value: `RunConfig`, frozen, every unknown key refused.

Numbers carry their unit in the name or here: rows are packed sequences of `seq_len` tokens,
`batch.rows` counts them per optimizer step over all ranks.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from llmtrain.errors import nearest


def _number_from_text(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; take it as the number it is meant to be."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


# A path, or what may be one: `~` means the home folder, as a shell has it; no name on the Hub begins with it.
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
Number = Annotated[float, BeforeValidator(_number_from_text)]
PackingName = Literal["concat", "best_fit", "best_fit_crop"]  # what each is: `llmtrain.data.packing`
TooLong = Literal["refuse", "drop", "truncate_left"]  # what becomes of it: `llmtrain.data.too_long`


class Section(BaseModel):
    """What every section has in common: frozen, strict about keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(Section):
    """Which model: `source` (a Hub id or folder with weights) or `config` (a new one), never both."""

    source: PathText | None = None
    config: dict[str, Any] | None = None
    tokenizer: PathText | None = None  # default: the dataset's own, or that of `source`

    @model_validator(mode="after")
    def _one_of(self) -> ModelSection:
        if (self.source is None) == (self.config is None):
            raise ValueError("give exactly one of model.source and model.config")
        return self


class DataSource(Section):
    """One dataset folder and its share in the mixture."""

    path: PathText
    split: str = "train"
    weight: Number = Field(default=1.0, gt=0)


class TrainSource(DataSource):
    """A dataset that is trained on: its share is a weight, or `tokens` of the run exactly.

    After `max_epochs` passes over its rows it gives no more, and the others take its place.
    """

    name: str | None = None  # what phases call it; default: the last part of `path`
    tokens: Number | None = Field(default=None, gt=0)
    max_epochs: Number | None = Field(default=None, gt=0)

    @property
    def label(self) -> str:
        """The source as phases and reports name it."""
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1]

    @model_validator(mode="after")
    def _one_share(self) -> TrainSource:
        if self.tokens is not None and self.weight != 1.0:
            raise ValueError("give weight or tokens, not both")
        return self


class PhaseSection(Section):
    """A part of the run, up to the share `until` of its steps, in which the sources have these weights.

    A source that is not named gives nothing in it.
    """

    until: Number = Field(default=1.0, gt=0, le=1)
    weights: dict[str, Annotated[Number, Field(gt=0)]] = Field(min_length=1)


class DataSection(Section):
    """What is trained on, and how documents become rows of `seq_len` tokens.

    `too_long`: what becomes of a conversation longer than a row. It is refused unless this says to drop it,
    or to truncate it from the left, between turns, with its system turn kept. Text is cut where a row ends.
    """

    train: tuple[TrainSource, ...] = Field(min_length=1)
    phases: tuple[PhaseSection, ...] = ()
    eval: tuple[DataSource, ...] = ()
    seq_len: int = Field(default=1024, ge=2)
    packing: PackingName = "concat"
    mask_documents: bool = True
    too_long: TooLong | None = None

    @model_validator(mode="after")
    def _phases_fit(self) -> DataSection:
        if not self.phases:
            return self
        names = [source.label for source in self.train]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two data.train sources are called {min(twice)!r}: give them a name each")
        for source in self.train:
            if source.tokens is not None or source.weight != 1.0:
                raise ValueError(f"{source.label!r} has weight or tokens, and phases give weights: keep one")
        for number, phase in enumerate(self.phases):
            for unknown in sorted(phase.weights.keys() - set(names)):
                hint = nearest(unknown, names) or f"known are {', '.join(names)}"
                raise ValueError(f"phases.{number}.weights: no data.train source is {unknown!r}; {hint}")
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError(f"phases end at {ends}: each must end later than the one before, the last at 1")
        return self


class BatchSection(Section):
    """`rows` per optimizer step over all ranks; `micro` rows per rank and forward pass."""

    rows: int = Field(default=64, ge=1)
    micro: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class ScheduleSection(Section):
    """How long, and the learning rate's shape. `warmup` below 1 is a share of the steps.

    The length is a number of steps, or the steps that see at least so many tokens, or at least so many
    `epochs`: passes over the rows of all training sources together.
    """

    steps: int | None = Field(default=None, ge=1)
    tokens: Number | None = Field(default=None, gt=0)
    epochs: Number | None = Field(default=None, gt=0)
    warmup: Number = Field(default=0.02, ge=0)
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: Number = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _one_of(self) -> ScheduleSection:
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            fix = "give exactly one of schedule.steps, schedule.tokens and schedule.epochs"
            out = " or ".join(f"schedule.{name}=null" for name in given)
            raise ValueError(f"{fix} ({out} takes one out)" if given else fix)
        return self


class OptimizerSection(Section):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); `clip` is the global gradient norm, 0 = off."""

    type: Literal["adamw"] = "adamw"
    lr: Number = Field(default=3e-4, gt=0)
    betas: tuple[Number, Number] = (0.9, 0.95)
    eps: Number = Field(default=1e-8, gt=0)
    weight_decay: Number = Field(default=0.1, ge=0)
    clip: Number = Field(default=1.0, ge=0)


class ParallelSection(Section):
    """Model parallelism; what is left of the world is data parallel."""

    pipeline: int = Field(default=1, ge=1)


class CheckpointSection(Section):
    """Save `every` so many steps (0: only at the end), keep the newest `keep`.

    `on_failure`: whether training goes on when a save is lost. The last one, and the one before a stop on
    request, always count.
    """

    every: int = Field(default=0, ge=0)
    keep: int = Field(default=2, ge=1)
    on_failure: Literal["continue", "stop"] = "continue"


class EvalSection(Section):
    """Evaluate `every` so many steps (0: only at the end) on `rows` held-out rows."""

    every: int = Field(default=0, ge=0)
    rows: int = Field(default=64, ge=1)


class HealthSection(Section):
    """When the run goes back to its last good checkpoint and passes over the steps to blame.

    `skips`: so many steps in a row without an update. `on_spike`: what a loss far above those of the last 128
    steps does (skip: that step touches no weight). `checksum_every`: compare the weights that several ranks
    hold, then and in each step after which a save is due, and stop when one differs (0: never). `hang_s`: a
    step that takes more seconds ends the run, with every rank's stack and the name of the one that all wait
    for; other phases get 3 times as long (0: off). At the start all ranks wait as long for each other, at
    least a minute.
    """

    skips: int = Field(default=20, ge=1)
    on_spike: Literal["report", "skip", "rollback", "stop"] = "report"
    checksum_every: int = Field(default=100, ge=0)
    hang_s: Number = Field(default=600.0, ge=0)


class LogSection(Section):
    """What is logged besides metrics.jsonl, which always is."""

    every: int = Field(default=10, ge=1)  # plain-text line every so many steps
    tensorboard: bool = False


class RunConfig(Section):
    """One training run. Everything up to the engine is a pure function of this value."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=1234, ge=0)
    output_dir: PathText | None = None  # default: runs/NAME
    model: ModelSection
    data: DataSection
    batch: BatchSection = BatchSection()
    schedule: ScheduleSection
    optimizer: OptimizerSection = OptimizerSection()
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    parallel: ParallelSection = ParallelSection()
    deepspeed: PathText = "zero1"  # a name in ds_configs/ or a path to a DeepSpeed JSON file
    kernels: Literal["auto", "reference", "fused"] = "auto"
    recompute: Literal["none", "selective", "full"] = "none"
    deterministic: bool = False  # the same bits each time, on a GPU too; slower
    checkpoint: CheckpointSection = CheckpointSection()
    eval: EvalSection = EvalSection()
    health: HealthSection = HealthSection()
    log: LogSection = LogSection()

    @property
    def folder(self) -> str:
        """The run folder."""
        return self.output_dir or f"runs/{self.name}"

    @property
    def another(self) -> str:
        """What starts another run with these settings beside this one, as the command line takes it."""
        return "name=other" if self.output_dir is None else "output_dir=other"
