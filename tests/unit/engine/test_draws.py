"""Dropout draws are arithmetic: the same place in the run draws the same, any other place something else."""

from __future__ import annotations

import torch

from llmtrain.engine.draws import Draws


def drawn(step: int, micros: int, seed: int = 7, dp_rank: int = 0, index: int = 0) -> list[list[float]]:
    stage = torch.nn.Dropout(0.5)
    draws = Draws(stage, seed, dp_rank, index)
    draws.begin(step)
    return [stage(torch.ones(64)).tolist() for _ in range(micros)]


def test_the_same_place_draws_the_same() -> None:
    assert drawn(3, 2) == drawn(3, 2)


def test_every_other_place_draws_something_else() -> None:
    first, second = drawn(3, 2)
    others = [drawn(4, 1), drawn(3, 1, seed=8), drawn(3, 1, dp_rank=1), drawn(3, 1, index=1)]
    assert len({str(draw) for draw in (first, second, *(other[0] for other in others))}) == 6


def test_an_evaluation_neither_counts_nor_touches_the_generator() -> None:
    stage = torch.nn.Dropout(0.5)
    draws = Draws(stage, 7, 0, 0)
    draws.begin(3)
    stage(torch.ones(64))
    before = torch.get_rng_state()
    stage.eval()(torch.ones(64))
    assert torch.equal(torch.get_rng_state(), before)
    assert stage.train()(torch.ones(64)).tolist() == drawn(3, 2)[1]
