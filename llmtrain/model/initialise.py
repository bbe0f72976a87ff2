"""Weights that do not depend on the topology.

Hugging Face's own `_init_weights` initialises every module, each under a random generator seeded by
(seed, the module's name), sampled in fp32 and then rounded to the run's dtype. So a weight is the same bit
for bit at every ZeRO stage and pipeline cut. The unit of work is one decoder layer (or one module outside
them), so at most one unit exists in fp32 beside the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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


class Fill(Protocol):
    """Puts weights from files into a unit, parameters only when asked to, and marks what it has set."""

    def __call__(self, name: str, unit: nn.Module, parameters: bool) -> None:
        """`name` is the unit's in the whole model."""


def leave_unfilled(name: str, unit: nn.Module, parameters: bool) -> None:
    """No weights from files: everything is initialised."""


def materialise(hf: nn.Module, device: torch.device) -> None:
    """Gives every meta parameter and buffer of `hf` memory on `device`; shared ones stay shared."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # a parameter's hash is its identity
    for module in hf.modules():
        for name, param in module._parameters.items():
            if param is None or not param.is_meta:
                continue
            if param not in made:
                empty = torch.empty_like(param, device=device)
                made[param] = nn.Parameter(empty, requires_grad=param.requires_grad)
            module._parameters[name] = made[param]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def initialise(
    hf: Any,
    layers: str | None,
    seed: int,
    fill: Fill = leave_unfilled,
    zero3: Partitioner | None = None,
) -> list[str]:
    """Fills or initialises every parameter and buffer of `hf` in place.

    Returns the names that neither `fill` nor the family's own initialisation has set; they hold NaN.
    """
    unset: list[str] = []
    with torch.no_grad(), guard_torch_init_functions(), _rng_kept():
        for name, unit, owner in _units(hf, layers):
            params = [p for p in unit.parameters() if not is_set(p)]
            with zero3.gathered(params) if zero3 and params else nullcontext():
                writes = zero3 is None or zero3.is_writer
                fill(name, unit, writes)
                _initialise_unit(name, unit, owner, params if writes else [], seed)
                if writes:
                    unset += [_join(name, key) for key, tensor in _floats(unit) if tensor.isnan().any()]
            for param in params:
                mark_set(param)
    return unset


def _initialise_unit(
    name: str, unit: nn.Module, owner: PreTrainedModel, params: list[nn.Parameter], seed: int
) -> None:
    """Initialises what of the unit is not set; of its parameters only `params`, the others are kept."""
    wide: dict[nn.Parameter, torch.Tensor] = {}
    open_params = [param for param in params if not is_set(param)]
    for param in open_params:
        if param.is_floating_point() and param.dtype != torch.float32:
            wide[param] = param.data
            param.data = torch.empty_like(param, dtype=torch.float32)
        if param.is_floating_point():
            param.data.fill_(torch.nan)
    for buffer in unit.buffers():
        if buffer.is_floating_point() and not is_set(buffer):
            buffer.fill_(torch.nan)
    for param in unit.parameters():
        if not any(param is known for known in open_params):
            mark_set(param)  # tells transformers to leave it alone
    for child_name, child, child_owner in _post_order(name, unit, owner):
        _seed(seed, child_name)
        child_owner._init_weights(child)
    for param, narrow in wide.items():
        narrow.copy_(param.data)
        param.data = narrow


def mark_set(tensor: Any) -> None:
    """transformers' own flag: its initialisation leaves this tensor alone."""
    tensor._is_hf_initialized = True


def is_set(tensor: torch.Tensor) -> bool:
    """Whether a value has been given to this tensor."""
    return getattr(tensor, "_is_hf_initialized", False)


def _floats(unit: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in (*unit.named_parameters(), *unit.named_buffers()):
        if tensor.is_floating_point():
            yield key, tensor


def _join(name: str, key: str) -> str:
    return f"{name}.{key}".strip(".")


def _units(hf: Any, layers: str | None) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    """Name, module and the model whose `_init_weights` it belongs to; the head, maybe tied, comes last."""
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
