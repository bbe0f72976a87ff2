"""One stage put together, without asking whether the family can be trusted with it (`build` asks first)."""

from __future__ import annotations

from typing import Any

import torch

from llmtrain.errors import ConfigError, Problem
from llmtrain.model.attention import NAMES
from llmtrain.model.initialise import initialise, leave_unfilled, materialise
from llmtrain.model.kernels import Kernels, apply_liger
from llmtrain.model.rotary import follow_documents
from llmtrain.model.stages import Cut, StageModel, cut_model, drop
from llmtrain.model.structure import find_layers, read_structure, skeleton
from llmtrain.model.weights import WeightFiles


def assemble(
    config: Any,
    cut: Cut,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    kernels: Kernels,
    weights: WeightFiles | None = None,
    stand_in: float | None = None,
) -> StageModel:
    """Stage `cut`: made on the meta device, cut there, then given memory and weights on `device`.

    stand_in: the value of parameters that the family leaves unset; None refuses them with a ConfigError.
    """
    hf = skeleton(config, dtype, NAMES[kernels.attention])
    prepare(hf, kernels)
    fill = weights.fill_for(hf) if weights else leave_unfilled
    structure = read_structure(hf) if cut.count > 1 else None
    if structure is not None:
        cut_model(hf, cut, structure)
    materialise(hf, torch.device(device))
    unset = initialise(hf, find_layers(hf), seed, fill)
    if unset and stand_in is None:
        raise_unset(hf, unset)
    for name in unset:
        hf.get_parameter_or_buffer(name).data.nan_to_num_(nan=stand_in)
    if structure is not None and cut.is_last and hf.all_tied_weights_keys:
        drop(hf, structure.entry[0])  # it was there to initialise the head's weight under its own name
    return StageModel(hf, cut, kernels)


def prepare(hf: Any, kernels: Kernels) -> None:
    """Kernels that are put into the whole model, before it is cut."""
    if "liger" in (kernels.norm, kernels.rope, kernels.mlp):
        apply_liger(hf, kernels)
    follow_documents(hf)


def raise_unset(hf: Any, unset: list[str]) -> None:
    """ConfigError: weights that the family's own initialisation does not know."""
    family = hf.config.model_type
    raise ConfigError(
        Problem(
            "model.config.model_type",
            family,
            "the run",
            f"transformers does not initialise {', '.join(unset[:3])} of {family} when a model is built in "
            "its place; start from weights instead (model.source)",
        )
    )
