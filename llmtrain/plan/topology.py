"""How the ranks are used: world = dp × pipeline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topology:
    """`world` ranks, each row of the model cut into `pipeline` stages; the rest is data parallel."""

    world: int
    pipeline: int = 1
    zero_stage: int = 1

    def __post_init__(self) -> None:
        assert self.world >= 1 and self.pipeline >= 1, f"no such topology: {self}"
        assert self.world % self.pipeline == 0, f"{self.world} ranks don't divide into {self.pipeline} stages"

    @property
    def dp(self) -> int:
        """Data-parallel ranks: how many ways the rows of a step are shared out."""
        return self.world // self.pipeline
