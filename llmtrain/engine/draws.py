"""What is random in a step (dropout), as arithmetic: nothing of it is carried, saved or restored.

Before each forward pass of training, torch's generators are seeded from (run seed, step, micro-batch, data
parallel rank, stage). So a resumed step draws what the undisturbed one drew, and an evaluation in between
changes nothing. Layers that are computed again get the same draws: torch keeps them with the layer's input.
"""

from __future__ import annotations

from typing import Any

import torch

from llmtrain.data.order import derive


class Draws:
    """Seeds the generators of this rank; `micro` counts the forward passes of the step so far."""

    def __init__(self, stage: torch.nn.Module, seed: int, dp_rank: int, index: int):
        self._place = dp_rank, index
        self.seed = seed
        self._step = 0
        self.micro = 0
        stage.register_forward_pre_hook(self._before_forward)

    def begin(self, step: int) -> None:
        """Step `step` of the run begins."""
        self._step, self.micro = step, 0

    def _before_forward(self, stage: torch.nn.Module, inputs: Any) -> None:
        if stage.training:
            torch.manual_seed(derive(self.seed, self._step, self.micro, *self._place))
            self.micro += 1
