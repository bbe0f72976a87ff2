"""A causal LM cut into pipeline stages: the same model, with what a stage does not own passed through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmtrain.errors import ConfigError, Problem
from llmtrain.model.structure import Structure, read_structure, skeleton


@dataclass(frozen=True)
class Cut:
    """Stage `index` of `count`: decoder layers first_layer … last_layer - 1."""

    index: int
    count: int
    first_layer: int
    last_layer: int

    @property
    def is_first(self) -> bool:
        """This stage reads the tokens."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """This stage computes the loss."""
        return self.index == self.count - 1


class PassThrough(nn.Module):
    """A decoder layer of another stage."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """hidden_states, unchanged."""
        return hidden_states


class StageModel(nn.Module):
    """One pipeline stage, or the whole model when there is one stage, around the Hugging Face model `hf`.

    One stage: forward(tokens, positions, labels) → the loss sum (fp32 scalar).
    First of several: forward(tokens, positions) → (hidden, positions); middle: (hidden, positions) → the
    same; last: (hidden, positions) → hidden after the final norm, then `loss(hidden, labels)`.
    tokens, positions, labels are int64 [rows, seq]; hidden is [rows, seq, width].
    """

    def __init__(self, hf: Any, cut: Cut, structure: Structure | None):
        super().__init__()
        self.hf = hf
        self.cut = cut
        self.structure = structure
        tied = dict(hf.all_tied_weights_keys)
        self._tied_names = tied if cut.count > 1 else {}

    def forward(
        self, inputs: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        given = {"input_ids": inputs} if self.cut.is_first else {"inputs_embeds": inputs}
        hidden = self.hf.base_model(position_ids=positions, use_cache=False, **given).last_hidden_state
        if self.cut.count == 1:
            assert labels is not None, "a single stage computes the loss and needs labels"
            return self.loss(hidden, labels)
        return hidden if self.cut.is_last else (hidden, positions)

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of cross entropy (nats, fp32 scalar) over the labels that are trained on."""
        return self.hf.get_output_embeddings()(hidden, labels)

    def canonical_name(self, parameter_name: str) -> str:
        """The name the whole Hugging Face model gives to this stage's parameter (or buffer)."""
        name = parameter_name.removeprefix("hf.")
        return self._tied_names.get(name, name)

    @property
    def tied_weight(self) -> nn.Parameter | None:
        """The weight shared by the first and the last stage, on these two; None elsewhere or when untied."""
        for target, source in self._tied_names.items():
            name = source if self.cut.is_first else target
            if self.cut.is_first or self.cut.is_last:
                return self.hf.get_parameter(name)
        return None


def cut_model(hf: Any, cut: Cut, structure: Structure) -> None:
    """Removes from `hf` (on any device) what stage `cut` does not own."""
    layers = hf.get_submodule(structure.layers)
    for index in range(len(layers)):
        if not cut.first_layer <= index < cut.last_layer:
            layers[index] = PassThrough()
    if not cut.is_first:
        for name in structure.entry[1:]:
            hf.set_submodule(name, PassThrough())
        if not (cut.is_last and hf.all_tied_weights_keys):
            drop(hf, structure.entry[0])
    if not cut.is_last:
        for name in structure.exit:
            hf.set_submodule(name, PassThrough())
        drop(hf, structure.head)


def drop(hf: Any, name: str) -> None:
    """Takes a submodule out, leaving None in its place."""
    parent, _, child = name.rpartition(".")
    setattr(hf.get_submodule(parent), child, None)


def plan_cuts(config: Any, count: int) -> list[Cut]:
    """`count` stages of consecutive decoder layers, balanced by compute, then by parameters.

    ConfigError when the family can't be cut or there are more stages than layers.
    """
    hf = skeleton(config, torch.float32)
    if count == 1:
        from llmtrain.model.structure import find_layers

        name = find_layers(hf)
        return [Cut(0, 1, 0, len(hf.get_submodule(name)) if name else 0)]
    structure = read_structure(hf)
    layers = hf.get_submodule(structure.layers)
    if count > len(layers):
        raise ConfigError(
            Problem(
                "parallel.pipeline",
                count,
                f"model has {len(layers)} decoder layers",
                f"every stage needs a layer: use at most {len(layers)} stages",
            )
        )
    costs = [float(sum(p.numel() for p in layer.parameters())) for layer in layers]
    head = float(sum(p.numel() for p in hf.get_submodule(structure.head).parameters()))
    costs[-1] += head
    bounds = _balance(costs, count)
    return [Cut(i, count, bounds[i], bounds[i + 1]) for i in range(count)]


def _balance(costs: list[float], count: int) -> list[int]:
    """Bounds of `count` non-empty runs of `costs` whose largest sum is smallest."""
    n = len(costs)
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    best: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [0])}]
    for _stage in range(count):
        row: dict[int, tuple[float, list[int]]] = {}
        for end in range(1, n + 1):
            for start, (worst, bounds) in best[-1].items():
                if start < end:
                    found = max(worst, total[end] - total[start])
                    if end not in row or found < row[end][0]:
                        row[end] = (found, [*bounds, end])
        best.append(row)
    return best[count][n][1]
