"""How large a model, for how long, from how much text and which machine: simple rules, each said in the file.

passes    a text is read up to 4 times; more teaches little (Muennighoff et al., arXiv 2305.16264)
size      the largest model that gets 20 tokens for each parameter from text and time
          (Hoffmann et al., arXiv 2203.15556), and whose states fit the machine
time      6 operations per parameter and token, at 40 % of a GPU's peak or 30 GFLOP/s of a CPU core
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmtrain.plan.compute import peak_flops
from llmtrain.plan.model_shape import ModelShape, shape_of

PASSES = 4
TOKENS_PER_PARAMETER = 20
GPU_SHARE, CORE_FLOPS = 0.4, 30e9
UNKNOWN_GPU_FLOPS = 100e12
STATE_SHARE = 0.6  # of a device's memory; the rest is for activations
VOCABULARIES = ((20e6, 4096, 3.2), (200e6, 8192, 3.6), (2e9, 16384, 4.0), (math.inf, 32768, 4.4))
NO_BF16 = ("V100", "T4")
# layers, hidden, intermediate, heads, key-value heads, tokens per row, learning rate
LADDER = (
    (4, 192, 512, 3, 3, 256, 3e-3),
    (6, 320, 896, 5, 5, 512, 2e-3),
    (8, 512, 1408, 8, 8, 1024, 1e-3),
    (12, 768, 2048, 12, 12, 2048, 6e-4),
    (24, 1024, 2816, 16, 16, 2048, 4e-4),
    (24, 2048, 5504, 16, 16, 4096, 3e-4),
    (28, 3072, 8192, 24, 8, 4096, 3e-4),
    (32, 4096, 14336, 32, 8, 4096, 3e-4),
)


@dataclass(frozen=True)
class Text:
    """What is to be learnt: where it lies, how much it is, and whether it is conversations."""

    path: str
    files: int
    bytes: float  # of text, estimated where it is packed
    documents: int  # estimated where files hold many
    messages: str = ""  # the field that holds a conversation's messages; "" for plain text

    @property
    def held_out(self) -> float:
        """The share of documents that is never trained on: about 5 of them at least; 0 of too few."""
        return 0.0 if self.documents < 20 else max(0.01, round(5 / self.documents, 2))


@dataclass(frozen=True)
class Machine:
    """What trains: `count` devices of a kind; `memory` of one, in bytes, where it is known."""

    name: str
    kind: str  # cpu or cuda
    count: int
    memory: int | None
    cores: int = 1

    @property
    def flops(self) -> float:
        """Operations per second that training gets out of all of it."""
        if self.kind == "cpu":
            return CORE_FLOPS * self.cores
        return self.count * GPU_SHARE * (peak_flops(self.name) or UNKNOWN_GPU_FLOPS)

    @property
    def precision(self) -> str:
        """What it computes in: bf16, or fp16 on GPUs that lack it."""
        return "fp16" if any(name in self.name.upper() for name in NO_BF16) else "bf16"


@dataclass(frozen=True)
class Sizes:
    """The numbers of a run. Without `config` the model is one that exists."""

    vocab: int
    text_tokens: float
    seq_len: int
    rows: int
    tokens: float
    lr: float
    deepspeed: str
    config: dict[str, Any] | None = None
    shape: ModelShape | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.tokens / (self.rows * self.seq_len)))


def new_model(text: Text, machine: Machine, hours: float) -> Sizes:
    """A model from nothing: the largest rung of the ladder that text, time and memory carry."""
    _, vocab, bytes_per_token = next(row for row in VOCABULARIES if text.bytes < row[0])
    available = text.bytes / bytes_per_token
    budget = machine.flops * hours * 3600
    chosen = 0
    for number in range(len(LADDER)):
        shape, _ = _rung(number, vocab)
        n = shape.active_matmul_parameters
        enough = TOKENS_PER_PARAMETER * n <= PASSES * available and 6 * n * TOKENS_PER_PARAMETER * n <= budget
        if enough and strategy(shape.parameters, machine) is not None:
            chosen = number
    shape, config = _rung(chosen, vocab)
    tokens = min(PASSES * available, budget / (6 * shape.active_matmul_parameters))
    seq_len, lr = LADDER[chosen][5:]
    return Sizes(
        vocab=vocab,
        text_tokens=available,
        seq_len=seq_len,
        rows=rows_per_step(tokens, seq_len, machine.count),
        tokens=_rounded(tokens),
        lr=lr,
        deepspeed=strategy(shape.parameters, machine) or "zero3",
        config=config,
        shape=shape,
    )


def tuned_model(text: Text, machine: Machine, parameters: int | None) -> Sizes:
    """A model that exists: conversations three times, plain text twice. Its size may be unknown."""
    available = text.bytes / 4.0
    seq_len = 1024 if machine.kind == "cpu" else 4096
    tokens = available * (3 if text.messages else 2)
    return Sizes(
        vocab=0,
        text_tokens=available,
        seq_len=seq_len,
        rows=min(64, rows_per_step(tokens, seq_len, machine.count)),
        tokens=_rounded(tokens),
        lr=1e-5 if text.messages else 2e-5,
        deepspeed=strategy(parameters, machine) or "zero3" if parameters else "zero1",
    )


def strategy(parameters: int, machine: Machine) -> str | None:
    """The first ZeRO stage at which a rank's states fit; None when even sharded weights don't."""
    if machine.memory is None:
        return "zero1"
    room, ranks = STATE_SHARE * machine.memory, machine.count
    for name, whole, shared in (("zero1", 6, 12), ("zero2", 2, 18), ("zero3", 0, 20)):
        if parameters * (whole + shared / ranks) <= room:
            return name
    return None


def rows_per_step(tokens: float, seq_len: int, ranks: int) -> int:
    """At least 400 steps, 2 thousand to 1 million tokens each, so that every rank has as many rows."""
    wanted = min(max(tokens / 400, 2048), 2**20) / seq_len
    return ranks * 2 ** max(0, round(math.log2(max(wanted / ranks, 1))))


def _rung(number: int, vocab: int) -> tuple[ModelShape, dict[str, Any]]:
    layers, hidden, intermediate, heads, kv_heads, seq_len, _ = LADDER[number]
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": seq_len,
        "tie_word_embeddings": hidden < 4096,
    }
    shape = shape_of(config, vocab)
    assert shape is not None, f"rung {number} of the ladder lacks a size"
    return shape, config


def _rounded(tokens: float) -> float:
    """To two figures; at least one step's worth is trained in any case."""
    digits = 1 - math.floor(math.log10(max(tokens, 1)))
    return max(2048.0, round(tokens, digits))
