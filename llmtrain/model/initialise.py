"""Weights that do not depend on the topology.

Hugging Face's own `_init_weights` initialises every module, each under a random generator seeded by
(seed, the module's name), sampled in fp32 and then rounded to the run's dtype. So a weight is the same bit for
bit at every ZeRO stage and pipeline cut. The unit of work is one decoder layer (or one module outside
them), so at most one unit exists in fp32 beside the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions


class Partitioner(Protocol):
    """ZeRO-3, as the engine hands it in."""

    is_writer: bool

    def construct(self) -> AbstractContextManager[Any]:
        """Parameters made inside are partitioned at once."""

    def gathered(self, params: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """Inside, the params are whole; what the writer rank has written is everywhere afterwards."""


Fill = Callable[[str, nn.Module], bool]  # (unit name, unit) → its parameters have been filled


def materialise(hf: nn.Module, device: torch.device) -> None:
    """Gives every meta parameter and buffer of `hf` memory on `device`; shared ones stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in hf.modules():
        for name, param in module._parameters.items():
            if param is None or not param.is_meta:
                continue
            if id(param) not in made:
                empty = torch.empty_like(param, device=device)
                made[id(param)] = nn.Parameter(empty, requires_grad=param.requires_grad)
                made[id(param)]._meta_original = param  # keeps id(param) from being reused
            module._parameters[name] = made[id(param)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device=device)
    for param in made.values():
        del param._meta_original


def initialise(hf: Any, layers: str | None, seed: int, fill: Fill, zero3: Partitioner | None = None) -> None:
    """Initialises all units of `hf` in place; `fill` may put weights read from files into a unit instead."""
    with torch.no_grad(), guard_torch_init_functions(), _rng_kept():
        for name, unit, owner in _units(hf, layers):
            params = [p for p in unit.parameters() if not getattr(p, "_is_hf_initialized", False)]
            with zero3.gathered(params) if zero3 and params else nullcontext():
                writes = zero3 is None or zero3.is_writer
                _initialise_unit(name, unit, owner, params, seed, fill, writes)


def _initialise_unit(
    name: str,
    unit: nn.Module,
    owner: PreTrainedModel,
    params: list[nn.Parameter],
    seed: int,
    fill: Fill,
    writes: bool,
) -> None:
    wide: dict[nn.Parameter, torch.Tensor] = {}
    filled = writes and fill(name, unit)
    for param in params:
        if writes and not filled and param.is_floating_point() and param.dtype != torch.float32:
            wide[param] = param.data
            param.data = torch.empty_like(param, dtype=torch.float32)
        param._is_hf_initialized = filled or not writes  # such a parameter is left alone below
    for child_name, child, child_owner in _post_order(name, unit, owner):
        _seed(seed, child_name)
        child_owner._init_weights(child)
    for param, narrow in wide.items():
        narrow.copy_(param.data)
        param.data = narrow
    for param in params:
        param._is_hf_initialized = True


def _units(hf: Any, layers: str | None) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    """Name, module and the model whose `_init_weights` it belongs to: the head comes last, as it may be tied."""
    found = list(_walk("", hf, hf, layers))
    head = hf.get_output_embeddings()
    yield from (unit for unit in found if unit[1] is not head)
    yield from (unit for unit in found if unit[1] is head)


def _walk(
    name: str, module: nn.Module, owner: PreTrainedModel, layers: str | None
) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    owner = module if isinstance(module, PreTrainedModel) else owner
    holds_layers = layers is not None and (name == "" or layers == name or layers.startswith(f"{name}."))
    if not holds_layers:
        yield name, module, owner
        return
    for child_name, child in module.named_children():
        yield from _walk(f"{name}.{child_name}".lstrip("."), child, owner, layers)
    own = _Alone(module)
    if own.has_state:
        yield name, own, owner


class _Alone(nn.Module):
    """The parameters and buffers that a container holds itself, without its children's."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._parameters, self._buffers, self.module = module._parameters, module._buffers, [module]

    @property
    def has_state(self) -> bool:
        return any(t is not None for t in (*self._parameters.values(), *self._buffers.values()))


def _post_order(
    name: str, module: nn.Module, owner: PreTrainedModel
) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    if isinstance(module, _Alone):
        yield name, module.module[0], owner
        return
    owner = module if isinstance(module, PreTrainedModel) else owner
    for child_name, child in module.named_children():
        yield from _post_order(f"{name}.{child_name}", child, owner)
    yield name, module, owner


def _seed(seed: int, name: str) -> None:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _rng_kept() -> AbstractContextManager[Any]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)
