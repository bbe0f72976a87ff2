"""A rank's state copied to main memory: all that the loop waits for when it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from llmtrain.checkpoint.save import in_file_order
from llmtrain.checkpoint.tensorfile import TensorSpec
from llmtrain.engine.seam import Engine
from llmtrain.plan.host_memory import COPY_SHARE, available_bytes

BLOCK = 256 << 20  # bytes; a power of two, since torch rounds page-locked memory up to one


def too_little_memory(plans: Sequence[Mapping[str, Any]], host: str) -> str:
    """Why the copies of all ranks on `host` (this machine) would not fit beside it, or an empty string."""
    needed = sum(plan["bytes"] for plan in plans if plan["host"] == host)
    free = available_bytes()
    if free is None or needed <= COPY_SHARE * free:
        return ""
    have, want = f"{free / 1e9:.1f} GB", f"{needed / 1e9:.1f} GB"
    return f"{host} has {have} of memory free, the copies of its ranks' state need {want}"


class HostCopy:
    """The bytes of a rank's file after its header, in blocks that are used again by the next save.

    Blocks are page-locked where there is a GPU, so that it copies at full speed.
    """

    def __init__(self) -> None:
        self._blocks: list[torch.Tensor] = []
        self.size = 0

    def reserve(self, size: int) -> None:
        """Makes room for `size` bytes; raises RuntimeError or MemoryError when there is none."""
        if size == self.size:
            return
        self._blocks, self.size = [], 0
        pinned = torch.cuda.is_available()
        for start in range(0, size, BLOCK):
            length = min(BLOCK, size - start)
            block = torch.empty(length, dtype=torch.uint8, pin_memory=pinned)
            self._blocks.append(block.fill_(0))  # touched now: memory that is not there fails here
        self.size = size

    def take(self, engine: Engine, specs: Sequence[TensorSpec]) -> None:
        """Copies every slice. When this returns, the engine may change them."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the last step may have written on another stream
        at = 0
        for spec, (key, tensor) in zip(specs, in_file_order(engine, specs), strict=True):
            assert key == spec.key and tensor.dtype == spec.dtype, f"{key} came, {spec.key} was announced"
            data = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
            assert data.numel() == spec.size, f"{key} has {data.numel()} bytes, announced were {spec.size}"
            while data.numel():
                block, inside = self._blocks[at // BLOCK], at % BLOCK
                count = min(data.numel(), block.numel() - inside)
                block[inside : inside + count].copy_(data[:count], non_blocking=True)
                data, at = data[count:], at + count
        assert at == self.size, f"{at} bytes were copied, {self.size} announced"
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def pieces(self) -> Iterator[memoryview]:
        """What was copied, in order."""
        for block in self._blocks:
            yield block.numpy().data
