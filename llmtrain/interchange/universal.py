"""DeepSpeed's universal checkpoint: a folder per parameter, for its engine around the transformers model.

    OUT/latest_universal                                    names the folder below
    OUT/global_stepN/zero/NAME/{fp32,exp_avg,exp_avg_sq,step}.pt
                     zero/optimizer_state.pt
                     mp_rank_00_model_states.pt             steps, for ZeRO-1 and 2
                     zero_pp_rank_0_mp_rank_00_model_states.pt         and for ZeRO-3

These files are pickles because DeepSpeed reads nothing else; this module writes them and reads none. It is
laid out so that ZeRO-1, 2 and 3 can all load it: DeepSpeed's own converter writes two layouts, of which each
loads only under the stages it came from.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llmtrain.checkpoint import Checkpoint
from llmtrain.engine.seam import BUFFER, KINDS

# DeepSpeed goes through the loader's parameter groups and these side by side, and takes over every key but
# `params`. These have no other: hyper-parameters stay those of the script that loads, whatever its groups.
_GROUPS = 256


def write_universal(checkpoint: Checkpoint, out: Path) -> None:
    """Writes it into the folder `out`; one tensor at a time is in memory."""
    updates = torch.tensor(checkpoint.scalars["updates"])
    folder = out / f"global_step{checkpoint.step}"
    buffers: dict[str, torch.Tensor] = {}
    shapes: dict[str, torch.Size] = {}
    with checkpoint.reader() as reader:
        for name in reader.names:
            if reader.kinds(name) == [BUFFER]:
                buffers[name] = reader.tensor(name, BUFFER)
                continue
            shapes[name] = torch.Size(reader.shape(name))
            place = folder / "zero" / name
            place.mkdir(parents=True)
            for kind in KINDS:
                torch.save({"param": reader.tensor(name, kind)}, place / f"{kind}.pt")
            torch.save(updates, place / "step.pt")
    torch.save(_optimizer_state(updates), folder / "zero" / "optimizer_state.pt")
    states = _model_states(checkpoint, shapes, buffers)
    for file in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        torch.save(states, folder / file)
    (out / "latest_universal").write_text(folder.name, encoding="utf-8")


def _optimizer_state(updates: torch.Tensor) -> dict[str, Any]:
    groups = [{"params": [index]} for index in range(_GROUPS)]
    inner = {"state": {0: {"step": updates}}, "param_groups": groups}
    return {"ds_version": version("deepspeed"), "param_groups": groups, "optimizer_state_dict": inner}


def _model_states(
    checkpoint: Checkpoint, shapes: dict[str, torch.Size], buffers: dict[str, torch.Tensor]
) -> dict[str, Any]:
    step, updates = checkpoint.step, int(checkpoint.scalars["updates"])
    return {
        "module": buffers,
        "buffer_names": list(buffers),
        "optimizer": None,
        "param_shapes": [shapes],
        "lr_scheduler": {"last_batch_iteration": updates - 1},
        "skipped_steps": step - updates,
        "global_steps": step,
        "global_samples": step * checkpoint.manifest.identity.rows,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        "ds_config": {},
        "ds_version": version("deepspeed"),
    }
