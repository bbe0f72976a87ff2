"""torch's distributed checkpoint (DCP), written by one process.

The names are those of torch's own `get_model_state_dict` and `get_optimizer_state_dict`, flattened:

    model.NAME                                              fp32 weights, and persistent buffers
    optimizer.state.NAME.{exp_avg,exp_avg_sq,step}          AdamW's state
    step                                                    optimizer steps behind it

Param groups (lr, weight decay) are the loading script's own: it loads with `allow_partial_load`. The one use
of torch.distributed outside the engine: nothing is communicated, the format just lives in that package.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import CheckpointException, DefaultSavePlanner, FileSystemWriter, save
from torch.distributed.checkpoint.metadata import MetadataIndex

from llmtrain.checkpoint import Checkpoint
from llmtrain.checkpoint.reader import CheckpointReader
from llmtrain.checkpoint.tensorfile import DTYPES
from llmtrain.engine.seam import BUFFER, KINDS


class _OneByOne(DefaultSavePlanner):
    """Plans with tensors that have no values, and reads each when its turn to be written comes."""

    def __init__(self, reader: CheckpointReader, places: dict[str, tuple[str, str]]):
        super().__init__()
        self._reader, self._places = reader, places

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The tensor that goes under this name."""
        if index.fqn in self._places:
            return self._reader.tensor(*self._places[index.fqn])
        return super().lookup_object(index)


def write_dcp(checkpoint: Checkpoint, out: Path) -> None:
    """Writes it into the folder `out`; one tensor at a time is in memory."""
    entries: dict[str, torch.Tensor] = {"step": torch.tensor(checkpoint.step)}
    places: dict[str, tuple[str, str]] = {}
    with checkpoint.reader() as reader:
        for name, tensor in checkpoint.manifest.tensors.items():
            for kind in tensor.kinds():
                moment = kind not in (KINDS[0], BUFFER)
                key = f"optimizer.state.{name}.{kind}" if moment else f"model.{name}"
                dtype = next(DTYPES[piece.dtype] for piece in tensor.slices if piece.kind == kind)
                places[key] = name, kind
                entries[key] = torch.empty(tensor.shape, dtype=dtype, device="meta")
                if moment:
                    entries[f"optimizer.state.{name}.step"] = torch.tensor(checkpoint.scalars["updates"])
        # without copying ahead it asks for a tensor when the one before is written, and it keeps the
        # tensors of a file until that file is whole: so each has its own
        writer = FileSystemWriter(out, single_file_per_rank=False, per_thread_copy_ahead=0)
        with warnings.catch_warnings():  # that this is a single process
            warnings.simplefilter("ignore", UserWarning)
            try:
                save(entries, storage_writer=writer, planner=_OneByOne(reader, places), no_dist=True)
            except CheckpointException as error:  # a BaseException, which holds what really happened
                raise error.failures[0][0] from None
