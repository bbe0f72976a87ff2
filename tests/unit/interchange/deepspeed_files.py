"""A folder as DeepSpeed's ZeRO-3 lays it out, made without DeepSpeed, for tests of what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write_zero3(
    folder: Path, shapes: dict[str, tuple[int, ...]], step: int = 4, dp: int = 2, **model: Any
) -> Path:
    """`shapes` in two parameter groups, matrices and the rest; returns the save's own folder."""
    save = folder / f"global_step{step}"
    save.mkdir(parents=True)
    (folder / "latest").write_text(save.name)
    groups = [
        {name: torch.Size(shape) for name, shape in shapes.items() if (len(shape) > 1) is matrices}
        for matrices in (True, False)
    ]
    draw = torch.Generator().manual_seed(5)
    for rank in range(dp):
        sizes = [sum(-(-shape.numel() // dp) for shape in group.values()) for group in groups]
        flat = [[torch.rand(size, generator=draw) * 0.02 for size in sizes] for _ in range(3)]
        optimizer = {
            "zero_stage": 3,
            "fp32_flat_groups": flat[0],
            "optimizer_state_dict": {
                "state": {
                    index: {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}
                    for index, (first, second) in enumerate(zip(flat[1], flat[2], strict=True))
                }
            },
        }
        states = {
            "module": {},
            "buffer_names": [],
            "param_shapes": groups,
            "global_steps": step,
            "dp_world_size": dp,
            "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
            **model,
        }
        torch.save(states, save / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save(
            {"optimizer_state_dict": optimizer}, save / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        )
    return save
