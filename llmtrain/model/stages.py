"""A causal LM cut into pipeline stages: the same model, with what a stage does not own passed through."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmtrain.errors import ConfigError, Problem
from llmtrain.model.attention import is_varlen
from llmtrain.model.counts import layer_costs
from llmtrain.model.documents import Documents, documents_of, known
from llmtrain.model.kernels import Kernels
from llmtrain.model.loss import HeadFormula, whole_loss
from llmtrain.model.structure import Structure, body, read_structure, skeleton


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
    tokens, positions, labels are int64 [rows, seq]; hidden is [rows, seq, width]. `documents` come with the
    rows; where they are not given, they are read off the positions, which waits for the device.
    """

    def __init__(self, hf: Any, cut: Cut, kernels: Kernels):
        super().__init__()
        self.hf = hf
        self.cut = cut
        self.kernels = kernels
        tied = dict(hf.all_tied_weights_keys)
        self._tied_names = tied if cut.count > 1 else {}

    def forward(
        self,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        labels: torch.Tensor | None = None,
        documents: Documents | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        documents = documents or documents_of(positions)
        if self.kernels.loss == "model" and self.cut.count == 1:
            assert labels is not None, "a single stage computes the loss and needs labels"
            masks = self._masks(documents)
            with known(documents):
                raw = self.hf(input_ids=inputs, position_ids=positions, use_cache=False, **masks).logits
            return whole_loss(raw, labels, HeadFormula())
        name = "input_ids" if self.cut.is_first else "inputs_embeds"
        hidden = self.hidden(positions, documents, **{name: inputs})
        if self.cut.count == 1:
            assert labels is not None, "a single stage computes the loss and needs labels"
            return self.loss(hidden, labels)
        return hidden if self.cut.is_last else (hidden, positions)

    def hidden(
        self, positions: torch.Tensor, documents: Documents | None = None, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """What the layers (and on the last stage the final norm) make of input_ids or inputs_embeds."""
        documents = documents or documents_of(positions)
        given = {**inputs, **self._masks(documents)}
        with known(documents):
            return body(self.hf)(position_ids=positions, use_cache=False, **given).last_hidden_state

    def _masks(self, documents: Documents) -> dict[str, torch.Tensor]:
        """Bounds as a 4-D int32 "mask" [1, 1, 1, documents + 1], which transformers hands on as it is."""
        if not is_varlen(self.kernels.attention):
            return {}
        bounds = documents.bounds.view(1, 1, 1, -1)
        if self.kernels.compile:
            torch._dynamo.maybe_mark_dynamic(bounds, 3)  # one graph for every number of documents
        return {"attention_mask": bounds}

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
    """`count` stages of consecutive decoder layers, balanced by compute and then by parameters.

    Compute is the parameters a token meets: a layer's, with its share of the experts, and the head's on the
    last stage; the embedding is a lookup and counts only as parameters.
    ConfigError when the family can't be cut or there are more stages than layers.
    """
    hf = skeleton(config, torch.float32)
    costs, sizes = layer_costs(hf), layer_costs(hf, total=True)
    if count == 1:
        return [Cut(0, 1, 0, len(costs))]
    structure = read_structure(hf)
    if count > len(costs):
        raise ConfigError(
            Problem(
                "parallel.pipeline",
                count,
                f"the model has {len(costs)} decoder layers",
                f"every stage needs a layer of its own: use at most {len(costs)} stages",
            )
        )
    head = sum(p.numel() for p in hf.get_submodule(structure.head).parameters())
    entry = sum(p.numel() for name in structure.entry for p in hf.get_submodule(name).parameters())
    costs[-1] += head
    sizes[-1] += head
    sizes[0] += entry
    bounds = balance(costs, sizes, count)
    return [Cut(index, count, bounds[index], bounds[index + 1]) for index in range(count)]


def balance(costs: list[int], sizes: list[int], count: int) -> list[int]:
    """Bounds [0, …, n] of `count` non-empty runs: the dearest run is as cheap as can be.

    Of all such bounds, those with the most even sizes (least sum of squares).
    """
    cost, size = _sums(costs), _sums(sizes)
    dearest = _best(len(costs), count, lambda start, end: cost[end] - cost[start], max)[0]

    def squares(start: int, end: int) -> float:
        within = cost[end] - cost[start] <= dearest
        return float(size[end] - size[start]) ** 2 if within else float("inf")

    return _best(len(costs), count, squares, lambda left, right: left + right)[1]


def _sums(values: list[int]) -> list[int]:
    return [0, *itertools.accumulate(values)]


def _best(
    n: int, count: int, price: Callable[[int, int], float], join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """The cheapest split of range(n) into `count` non-empty runs, by dynamic programming over their ends."""
    best = {0: (0.0, [0])}
    for _ in range(count):
        row = {}
        for end in range(1, n + 1):
            options = [
                (join(so_far, price(start, end)), [*bounds, end])
                for start, (so_far, bounds) in best.items()
                if start < end
            ]
            if options:
                row[end] = min(options)
        best = row
    return best[n]
