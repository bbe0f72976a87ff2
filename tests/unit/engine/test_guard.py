"""The gate in front of the update where DeepSpeed has none."""

from __future__ import annotations

import math

import pytest
import torch

from llmtrain.engine.guard import norm_clip_or_withhold


def _parameters(*gradients: list[float]) -> list[torch.nn.Parameter]:
    made = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros(len(gradient)))
        parameter.grad = torch.tensor(gradient)
        made.append(parameter)
    return made


def test_norm_and_clip_are_global() -> None:
    parameters = _parameters([3.0, 0.0], [0.0, 4.0])
    assert norm_clip_or_withhold(parameters, clip=1.0, group=None) == pytest.approx(5.0)
    clipped = torch.cat([p.grad for p in parameters])
    assert clipped.tolist() == pytest.approx([0.6, 0.0, 0.0, 0.8], rel=1e-5)


def test_no_clip_leaves_gradients_alone() -> None:
    (parameter,) = _parameters([3.0, 4.0])
    assert norm_clip_or_withhold([parameter], clip=0.0, group=None) == pytest.approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_withholds_all(poison: float) -> None:
    parameters = _parameters([1.0], [poison, 2.0])
    assert not math.isfinite(norm_clip_or_withhold(parameters, clip=1.0, group=None))
    assert [p.grad for p in parameters] == [None, None]


def test_a_tied_copy_is_not_counted_twice() -> None:
    first, copy = _parameters([3.0], [3.0])
    copy.ds_pipe_replicated = True
    assert norm_clip_or_withhold([first, copy], clip=1.0, group=None) == pytest.approx(3.0)
    assert copy.grad.item() == pytest.approx(1.0, rel=1e-5)


def test_parameters_without_gradient_are_left_out() -> None:
    held, idle = _parameters([2.0], [9.0])
    idle.grad = None
    assert norm_clip_or_withhold([held, idle], clip=0.0, group=None) == pytest.approx(2.0)
