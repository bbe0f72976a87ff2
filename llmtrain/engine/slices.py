"""Where each rank's part of the state lies inside DeepSpeed's optimizers, as slices of canonical tensors.

Three layouts exist in DeepSpeed 0.19.8, one class each:

    FlatState    ZeRO-1/2 and BF16_Optimizer: fp32 partitions of flattened groups, mapped by `_hp_mapping`
    Zero3State   ZeRO-3: each parameter cut into equal parts, the last one padded; may lie on an NVMe disk
    WholeState   ZeRO-0: every rank holds everything, so the ranks share the saving

All are given zero moments and a step count at once, so that what is saved and loaded never depends on
whether a first step was taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from llmtrain.engine.seam import KINDS, Slice, SliceReader
from llmtrain.errors import EngineError

MOMENTS = KINDS[1:]


@dataclass(frozen=True)
class NamedParameter:
    """A trained parameter of this rank under its canonical name; `duplicate` if another stage saves it."""

    name: str
    parameter: torch.nn.Parameter
    duplicate: bool


class State(Protocol):
    """The optimizer state of one rank."""

    def slices(self) -> Iterator[Slice]:
        """This rank's share, each element once over all ranks."""

    def load(self, reader: SliceReader, step: int) -> None:
        """Reads what this rank holds and puts it where training uses it; `step` is AdamW's count."""


def _fill(optimizer: torch.optim.Optimizer, tensors: list[torch.Tensor], step: int) -> None:
    """Zero moments and AdamW's step count for each tensor that the optimizer steps on."""
    for tensor in tensors:
        state = optimizer.state[tensor]
        for kind in MOMENTS:
            if kind not in state:
                state[kind] = torch.zeros_like(tensor)
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=tensor.device)


class FlatState:
    """ZeRO-1, ZeRO-2 and BF16_Optimizer (a pipeline's stages too)."""

    def __init__(self, optimizer: Any, named: list[NamedParameter]):
        self._optimizer = optimizer
        self._named = named
        self._is_bf16 = hasattr(optimizer, "fp32_groups_flat_partition")
        partitions = "fp32_groups_flat_partition" if self._is_bf16 else "single_partition_of_fp32_groups"
        self._flat: list[torch.Tensor] = getattr(optimizer, partitions)
        _fill(optimizer.optimizer, self._flat, 0)
        optimizer._lazy_init_hp_params_optimizer_state()

    def _fragments(self) -> Iterator[tuple[NamedParameter, Any]]:
        for entry in self._named:
            mapping = entry.parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:  # None: nothing of this parameter lies on this rank
                yield entry, mapping

    def slices(self) -> Iterator[Slice]:
        """Fragments of this rank's flat partitions."""
        for entry, mapping in self._fragments():
            if entry.duplicate:
                continue
            start, shape = mapping.lp_fragment_address.start, tuple(entry.parameter.shape)
            yield Slice(entry.name, "fp32", shape, start, mapping.get_hp_fragment().detach())
            for kind in MOMENTS:
                yield Slice(entry.name, kind, shape, start, mapping.get_hp_fragment(kind))

    @torch.no_grad()
    def load(self, reader: SliceReader, step: int) -> None:
        """Fills the fp32 partitions, then makes the 16-bit weights from them on all ranks."""
        for entry, mapping in self._fragments():
            where = mapping.lp_fragment_address
            mapping.get_hp_fragment().copy_(reader.read(entry.name, "fp32", where.start, where.numel))
            for kind in MOMENTS:
                mapping.get_hp_fragment(kind).copy_(reader.read(entry.name, kind, where.start, where.numel))
        _fill(self._optimizer.optimizer, self._flat, step)
        self._refresh_weights()

    def _refresh_weights(self) -> None:
        optimizer = self._optimizer
        if self._is_bf16:
            optimizer.update_lp_params()
            return
        from deepspeed.runtime.utils import all_gather_dp_groups

        for _, mapping in self._fragments():
            mapping.update_lp()
        all_gather_dp_groups(
            groups_flat=optimizer.bit16_groups_flat,
            partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
            dp_process_group=optimizer.real_dp_process_group,
            start_alignment_factor=optimizer.nccl_start_alignment_factor,
            allgather_bucket_size=optimizer.allgather_bucket_size,
        )


class Zero3State:
    """ZeRO-3: `ds_tensor` is this rank's part of a parameter, padded at the end.

    The fp32 parts lie one after another in flat tensors, one for each of DeepSpeed's sub-groups. Those of a
    sub-group that lies on NVMe are empty until it is swapped in; small ones stay in memory there too.
    """

    def __init__(self, optimizer: Any, named: list[NamedParameter], rank: int):
        self._optimizer = optimizer
        self._rank = rank
        self._groups: list[list[NamedParameter]] = [[] for _ in optimizer.fp32_partitioned_groups_flat]
        for entry in named:
            self._groups[self._place(entry)[0]].append(entry)
        for index in range(len(self._groups)):
            with self._changing(index):
                self._fill(index, 0)

    def _place(self, entry: NamedParameter) -> tuple[int, int, int]:
        """(sub-group, first element in it, elements) of this rank's padded part."""
        return self._optimizer.grad_position[self._optimizer.get_param_id(entry.parameter)]

    def _parts(self, index: int) -> Iterator[tuple[NamedParameter, int, int, int]]:
        """A sub-group's parts: (parameter, where it lies, first element, elements without padding)."""
        for entry in self._groups[index]:
            _, place, part = self._place(entry)
            start = self._rank * part
            length = min(part, entry.parameter.ds_numel - start)  # type: ignore[attr-defined]
            if length > 0:
                yield entry, place, start, length

    def _tensors(self, index: int) -> dict[str, torch.Tensor]:
        """The flat tensors of a sub-group by kind."""
        flat = self._optimizer.fp32_partitioned_groups_flat[index]
        return {
            "fp32": flat.detach(),
            **{kind: self._optimizer.optimizer.state[flat][kind] for kind in MOMENTS},
        }

    def _fill(self, index: int, step: int) -> None:
        _fill(self._optimizer.optimizer, [self._optimizer.fp32_partitioned_groups_flat[index]], step)

    @contextlib.contextmanager
    def _changing(self, index: int) -> Iterator[None]:
        """Inside, a sub-group is in memory; what became of it is written back."""
        swapped = self._optimizer._swappable_optimizer_subgroup(index)
        if swapped:
            self._optimizer._optimizer_states_and_gradient_swap_in(index)
        yield
        if swapped:
            self._optimizer._optimizer_states_and_gradient_swap_out(index)

    def slices(self) -> Iterator[Slice]:
        """This rank's part of each parameter, one sub-group after another."""
        for index in range(len(self._groups)):
            if self._optimizer._swappable_optimizer_subgroup(index):
                yield from self._slices_on_disk(index)
                continue
            tensors = self._tensors(index)
            for entry, place, start, length in self._parts(index):
                shape = tuple(entry.parameter.ds_shape)  # type: ignore[attr-defined]
                for kind in KINDS:
                    yield Slice(entry.name, kind, shape, start, tensors[kind][place : place + length])

    def _slices_on_disk(self, index: int) -> Iterator[Slice]:
        """Swapped in when a value is asked for, released when the walk goes on to another sub-group."""
        tensors: dict[str, torch.Tensor] = {}

        def read(kind: str, place: int, length: int) -> torch.Tensor:
            if not tensors:
                self._optimizer._optimizer_states_and_gradient_swap_in(index)
                tensors.update(self._tensors(index))
            return tensors[kind][place : place + length]

        try:
            for entry, place, start, length in self._parts(index):
                shape = tuple(entry.parameter.ds_shape)  # type: ignore[attr-defined]
                outline = torch.empty(length, dtype=torch.float32, device="meta")
                for kind in KINDS:
                    yield Slice(entry.name, kind, shape, start, outline, partial(read, kind, place, length))
        finally:
            if tensors:
                self._optimizer._release_swap_buffers(index)

    @torch.no_grad()
    def load(self, reader: SliceReader, step: int) -> None:
        """Fills the fp32 parts and the 16-bit parts, then gathers the small persistent parameters anew."""
        optimizer = self._optimizer
        persistent = optimizer.persistent_parameters
        if persistent:
            persistent[0].partition(persistent)
        for index in range(len(self._groups)):
            with self._changing(index):
                for kind, tensor in self._tensors(index).items():
                    tensor.zero_()  # the padding
                    for entry, place, start, length in self._parts(index):
                        tensor[place : place + length].copy_(reader.read(entry.name, kind, start, length))
                self._fill(index, step)
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if persistent:
            persistent[0].all_gather(persistent)
        optimizer.invalidate_secondary_tensor()  # ZeRO++'s copy on each node, gathered anew when needed


class WholeState:
    """ZeRO-0: the torch optimizer's own tensors (fp32), or FP16_UnfusedOptimizer's fp32 copies."""

    def __init__(self, optimizer: Any, named: list[NamedParameter], dp_rank: int, dp: int):
        self._named = named
        self._share = (dp_rank, dp)
        self._torch: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self._master: dict[int, torch.Tensor] = {}
        for kept, copies in zip(
            getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=True
        ):
            self._master.update({id(p): copy for p, copy in zip(kept, copies, strict=True)})
        _fill(self._torch, [self._fp32(entry) for entry in named], 0)

    def _fp32(self, entry: NamedParameter) -> torch.Tensor:
        return self._master.get(id(entry.parameter), entry.parameter)

    def slices(self) -> Iterator[Slice]:
        """An equal share of every tensor for each data parallel rank."""
        rank, dp = self._share
        for entry in self._named:
            if entry.duplicate:
                continue
            master = self._fp32(entry)
            start, stop = (master.numel() * r // dp for r in (rank, rank + 1))
            if start == stop:
                continue
            tensors = {"fp32": master.detach(), **{k: self._torch.state[master][k] for k in MOMENTS}}
            for kind, tensor in tensors.items():
                yield Slice(entry.name, kind, tuple(master.shape), start, tensor.view(-1)[start:stop])

    @torch.no_grad()
    def load(self, reader: SliceReader, step: int) -> None:
        """Every rank reads all of what it holds."""
        for entry in self._named:
            master = self._fp32(entry)
            whole = (0, master.numel())
            master.view(-1).copy_(reader.read(entry.name, "fp32", *whole))
            if master is not entry.parameter:
                entry.parameter.copy_(master)
            for kind in MOMENTS:
                self._torch.state[master][kind].view(-1).copy_(reader.read(entry.name, kind, *whole))
        _fill(self._torch, [self._fp32(entry) for entry in self._named], step)


def open_state(optimizer: Any, named: list[NamedParameter], dp_rank: int, dp: int) -> State:
    """The layout of this optimizer, recognised by what it holds."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return Zero3State(optimizer, named, dp_rank)
    if hasattr(optimizer, "fp32_groups_flat_partition") or hasattr(
        optimizer, "single_partition_of_fp32_groups"
    ):
        return FlatState(optimizer, named)
    known = isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "fp32_groups")
    if not known:
        raise EngineError(f"unknown optimizer layout {type(optimizer).__name__}: DeepSpeed changed")
    return WholeState(optimizer, named, dp_rank, dp)
