"""The one seam between the loop and DeepSpeed: what an engine is, whatever is behind it.

`Slice` is the unit in which state leaves and enters an engine: a run of elements of one canonical
tensor, named as the Hugging Face model names it. A checkpoint is a set of slices that covers every
tensor exactly once, so it knows nothing of ranks, ZeRO stages or pipelines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from llmtrain.data.rows import Rows

# What is kept of each trained tensor: the fp32 weights and AdamW's two moments.
KINDS = ("fp32", "exp_avg", "exp_avg_sq")
BUFFER = "buffer"  # a persistent buffer of the model, kept in its own dtype


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same values on every rank."""

    loss: float  # mean over the valid tokens of the whole step; nan when there is none
    grad_norm: float  # global 2-norm before clipping; inf or nan when the step was skipped for it
    skipped: bool  # no weight was touched
    tokens: int  # valid tokens of the step
    loss_scale: float  # 1.0 unless fp16
    withheld: bool = False  # skipped because its loss was above `most_loss`


@dataclass(frozen=True)
class EvalResult:
    """Summed, so that results add up: mean loss = loss_sum / tokens."""

    loss_sum: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.loss_sum / max(self.tokens, 1)


@dataclass(frozen=True)
class Slice:
    """Elements `start … start + len(tensor)` of the flattened canonical tensor `name`.

    `shape` is the whole tensor's; `tensor` is 1-D and on any device: the meta device when what it stands for
    lies on a disk. `values()` may be a view of live state: copy it before the next slice is asked for.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    tensor: torch.Tensor
    read: Callable[[], torch.Tensor] | None = None  # of what lies on a disk

    def values(self) -> torch.Tensor:
        """The elements themselves, read from the disk if need be."""
        return self.tensor if self.read is None else self.read()


class SliceReader(Protocol):
    """Where an engine gets its state from: a checkpoint of any topology, or a folder of weights."""

    def read(self, name: str, kind: str, start: int, length: int) -> torch.Tensor:
        """A 1-D CPU tensor of `length` elements; raises CheckpointError when it is not there."""


class Comm(Protocol):
    """What the floors above the engine may say to the other ranks."""

    rank: int
    size: int

    def barrier(self) -> None:
        """Returns when all ranks have called it."""

    def gather(self, value: object) -> list[object]:
        """Every rank's `value` (anything JSON can carry), in rank order, on every rank."""

    def broadcast(self, value: object) -> object:
        """Rank 0's `value` (anything JSON can carry) on every rank."""


class Engine(Protocol):
    """A model, its optimizer and its ranks."""

    # Asked after each micro-batch of a step with how many are done, by every rank: whether to leave the step.
    leaves_step: Callable[[int], bool]

    @property
    def comm(self) -> Comm:
        """The line to the other ranks."""

    @property
    def kernels(self) -> dict[str, str | bool]:
        """Which implementation computes what, as this model's family really got it."""

    def train_step(
        self, rows: Rows, lr: float, step: int = 0, most_loss: float = math.inf, compare: bool = False
    ) -> StepResult | None:
        """One optimizer step over all rows; the loss is the mean over all their valid tokens.

        None when `leaves_step` said so: no weight and no moment was touched, and no other step may follow.
        A pipeline does not ask: its micro-batches are under way in all stages at once.

        `step` decides what dropout draws. With a loss above `most_loss` no weight is touched. `compare`
        raises EngineError, naming the rank, when weights that several ranks hold differ (ZeRO-3: none are).
        """

    def evaluate(self, rows: Rows) -> EvalResult:
        """The loss on rows, without a gradient. Any number of rows."""

    def slices(self) -> Iterator[Slice]:
        """This rank's share of the state; over all ranks each element of each tensor comes once."""

    def scalars(self) -> dict[str, float]:
        """State that is not a tensor and the same on all ranks (optimizer step, fp16 loss scale)."""

    def load(self, reader: SliceReader, scalars: dict[str, float]) -> None:
        """Replaces weights and optimizer state; every rank reads only what it owns."""

    def busy_s(self) -> float:
        """Seconds of the last step in which this rank worked and waited for no other; 0 without training."""

    def behind(self) -> str:
        """What this rank's GPU waits in, for the watchdog; empty when its host keeps the others waiting."""

    def memory_bytes(self) -> int:
        """Peak memory of this rank since the last call: device memory, or resident set on CPU."""

    def close(self) -> None:
        """Frees the engine and leaves the process group."""
