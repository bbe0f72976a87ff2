"""Which implementation computes what: one frozen value, chosen once, logged, never changed silently."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Kernels:
    """The implementation of every part that has more than one.

    attention  math | sdpa | cudnn | varlen
    norm, rope, mlp  torch | liger
    loss       auto (whole logits when small, else chunks) | whole | chunked
    optimizer  torch (for loop) | fused
    compile    torch.compile per decoder block
    """

    attention: str = "sdpa"
    norm: str = "torch"
    rope: str = "torch"
    mlp: str = "torch"
    loss: str = "auto"
    optimizer: str = "fused"
    compile: bool = False

    def describe(self) -> dict[str, str | bool]:
        """What was chosen, for the log and the run folder."""
        return asdict(self)


def choose_kernels(mode: str, device: str, precision: str, mask_documents: bool = True) -> Kernels:
    """`kernels: auto|reference|fused` of a run as a value for this device ("cpu" or "cuda")."""
    if mode == "reference":
        return Kernels(attention="math", loss="whole", optimizer="torch")
    return Kernels()
