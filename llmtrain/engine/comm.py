"""Small facts between ranks, as JSON over CPU tensors: no pickle on the wire, no device memory."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist


class TorchComm:
    """The `Comm` of the seam over torch.distributed; control messages go over gloo on every device."""

    def __init__(self, device: str):
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.device = device
        self._group = dist.group.WORLD if device == "cpu" else dist.new_group(backend="gloo")

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        dist.barrier(group=self._group)

    def gather(self, value: object) -> list[object]:
        """Every rank's `value`, in rank order, on every rank."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([data.numel()])
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self._group)
        longest = int(max(lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: data.numel()] = data
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self._group)
        return [json.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, lengths, strict=True)]

    def broadcast(self, value: object) -> object:
        """Rank 0's `value` on every rank."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([data.numel()])
        dist.broadcast(length, src=0, group=self._group)
        if self.rank != 0:
            data = torch.zeros(int(length), dtype=torch.uint8)
        dist.broadcast(data, src=0, group=self._group)
        return json.loads(data.numpy().tobytes())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` (a CPU tensor) summed over all ranks, in place."""
        dist.all_reduce(values, group=self._group)
        return values

    def sum_on_device(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all ranks on the device, by the backend of gradients (NCCL on a GPU)."""
        there = values.to(self.device)
        dist.all_reduce(there)
        return there
