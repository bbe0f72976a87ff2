"""Builds a model straight into its place: a pipeline stage, the whole model, or ZeRO-3's partitions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from llmtrain.model.configuration import hf_config
from llmtrain.model.initialise import Partitioner, initialise, materialise
from llmtrain.model.kernels import Kernels
from llmtrain.model.loss import HeadFormula, make_loss_head
from llmtrain.model.stages import Cut, StageModel, cut_model, drop, plan_cuts
from llmtrain.model.structure import find_layers, read_structure, skeleton

__all__ = ["Partitioner", "build_partitioned", "build_stage", "hf_config", "plan_cuts"]


def build_stage(
    config: Any,
    cut: Cut,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    weights: Any = None,
    kernels: Kernels | None = None,
) -> StageModel:
    """Stage `cut` of the model: made on the meta device, cut, and only then given memory."""
    kernels = kernels or Kernels()
    hf = skeleton(config, dtype)
    structure = read_structure(hf) if cut.count > 1 else None
    if structure is not None:
        cut_model(hf, cut, structure)
    materialise(hf, torch.device(device))
    initialise(hf, find_layers(hf), seed, lambda name, unit: False)
    if structure is not None and cut.is_last and not cut.is_first and hf.all_tied_weights_keys:
        drop(hf, structure.entry[0])
    return _finish(StageModel(hf, cut, structure), kernels)


def build_partitioned(
    config: Any,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    weights: Any = None,
    kernels: Kernels | None = None,
    *,
    zero3: Partitioner,
) -> StageModel:
    """The whole model under ZeRO-3: every parameter is partitioned as soon as it is made."""
    kernels = kernels or Kernels()
    shape = skeleton(config, dtype)
    own = type(config).from_dict(config.to_dict())
    own.use_cache = False
    with no_init_weights(), zero3.construct():
        hf = AutoModelForCausalLM.from_config(own, dtype=dtype)
    hf.tie_weights()
    _exact_buffers(hf, shape, torch.device(device))
    layers = find_layers(hf)
    initialise(hf, layers, seed, lambda name, unit: False, zero3)
    count = len(hf.get_submodule(layers)) if layers else 0
    return _finish(StageModel(hf, Cut(0, 1, 0, count), None), kernels)


def _exact_buffers(hf: nn.Module, shape: nn.Module, device: torch.device) -> None:
    """New buffers of the right dtype: zero.Init makes them in the run's dtype, which ruins inv_freq."""
    for (_, module), (_, model) in zip(hf.named_modules(), shape.named_modules(), strict=True):
        for name, buffer in model._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def _finish(stage: StageModel, kernels: Kernels) -> StageModel:
    if stage.cut.is_last:
        make_loss_head(stage.hf.get_output_embeddings(), HeadFormula(), kernels.loss)
    return stage.train()
