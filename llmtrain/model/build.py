"""Builds a model straight into its place: a pipeline stage, the whole model, or ZeRO-3's partitions.

What a family can't do (be cut, keep documents apart, have its loss fused) is proven or refused here, before
any memory is taken.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from llmtrain.errors import ConfigError, Problem
from llmtrain.model import probes
from llmtrain.model.assembly import assemble, prepare, raise_unset
from llmtrain.model.attention import NAMES, is_varlen
from llmtrain.model.configuration import hf_config
from llmtrain.model.counts import Counts, parameter_counts
from llmtrain.model.initialise import Partitioner, initialise, leave_unfilled
from llmtrain.model.kernels import Kernels, fit
from llmtrain.model.loss import make_loss_head
from llmtrain.model.recompute import apply_recompute
from llmtrain.model.stages import Cut, StageModel, plan_cuts
from llmtrain.model.structure import find_layers, skeleton
from llmtrain.model.weights import WeightFiles

__all__ = [
    "Counts",
    "Partitioner",
    "build_partitioned",
    "build_stage",
    "hf_config",
    "parameter_counts",
    "plan_cuts",
]


def build_stage(
    config: Any,
    cut: Cut,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    weights: WeightFiles | None = None,
    kernels: Kernels | None = None,
    *,
    recompute: str = "none",
) -> StageModel:
    """Stage `cut` of the model on `device`, in training mode; the rest of the model never takes memory.

    `StageModel.kernels` is what was really taken. ConfigError for what this family can't do,
    CheckpointError for weights that do not fit it.
    """
    kernels = prove(config, cut.count, kernels or Kernels())
    stage = assemble(config, cut, dtype, device, seed, kernels, weights)
    return _finish(stage, config, recompute)


def build_partitioned(
    config: Any,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    weights: WeightFiles | None = None,
    kernels: Kernels | None = None,
    *,
    zero3: Partitioner,
    recompute: str = "none",
) -> StageModel:
    """The whole model under ZeRO-3: every parameter is partitioned as soon as it is made.

    Weights come as in `build_stage`, one unit at a time: gathered, written on the writer rank, given back.
    """
    kernels = prove(config, 1, kernels or Kernels())
    shape = skeleton(config, dtype, NAMES[kernels.attention])
    own = copy.deepcopy(config)
    own.use_cache = False
    with no_init_weights(), zero3.construct():
        hf = AutoModelForCausalLM.from_config(own, dtype=dtype, attn_implementation=NAMES[kernels.attention])
    hf.tie_weights()
    prepare(hf, kernels)
    _exact_buffers(hf, shape, torch.device(device))
    fill = weights.fill_for(shape) if weights else leave_unfilled
    unset = initialise(hf, find_layers(hf), seed, fill, zero3)
    if unset:
        raise_unset(hf, unset)
    layers = find_layers(hf)
    count = len(hf.get_submodule(layers)) if layers else 0
    return _finish(StageModel(hf, Cut(0, 1, 0, count), kernels), config, recompute)


def prove(config: Any, stages: int, kernels: Kernels) -> Kernels:
    """`kernels` as this family can have them; ConfigError for what it can't do at all."""
    if stages > 1:
        probes.require_cut(config)
    kernels = fit(kernels, skeleton(config, torch.float32))
    if kernels.documents:
        if is_varlen(kernels.attention) and not kernels.strict:
            proven = probes.proves_document_masking(config, kernels.attention)
            kernels = kernels if proven else replace(kernels, attention="cudnn")
        probes.require_document_masking(config, kernels.attention)
    return kernels if probes.head_formula(config) else _loss_of_the_model(config, stages, kernels)


def _loss_of_the_model(config: Any, stages: int, kernels: Kernels) -> Kernels:
    """Whole logits by the model's own forward pass: its head is not understood."""
    family = f"model_type {config.model_type}"
    if stages > 1:
        why = "its logits are not known as a function of its last hidden states; use parallel.pipeline: 1"
        raise ConfigError(Problem("parallel.pipeline", stages, family, why))
    if kernels.strict:
        why = "its logits are not known as a function of its last hidden states, so its loss can't be fused; "
        why += "use kernels: auto"
        raise ConfigError(Problem("kernels", "fused", family, why))
    return replace(kernels, loss="model")


def _exact_buffers(hf: nn.Module, shape: nn.Module, device: torch.device) -> None:
    """New buffers of the right dtype: zero.Init makes them in the run's dtype, which ruins inv_freq."""
    models = dict(shape.named_modules())
    for name, module in hf.named_modules():
        for key, buffer in models[name]._buffers.items():
            if buffer is not None:
                module._buffers[key] = torch.empty_like(buffer, device=device)


def _finish(stage: StageModel, config: Any, recompute: str) -> StageModel:
    kernels, hf = stage.kernels, stage.hf
    if stage.cut.is_last and kernels.loss != "model":
        formula = probes.head_formula(config)
        assert formula is not None, "a head that is not understood was not noticed in prove"
        make_loss_head(hf.get_output_embeddings(), formula, kernels.loss)
    apply_recompute(hf, recompute)
    layers = find_layers(hf)
    if kernels.compile and layers is not None:
        for layer in list(hf.get_submodule(layers))[stage.cut.first_layer : stage.cut.last_layer]:
            layer.compile()
    return stage.train()
