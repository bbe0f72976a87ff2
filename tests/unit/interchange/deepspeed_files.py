"""A folder as DeepSpeed's ZeRO-3 lays it out, made without DeepSpeed, for tests of what is refused."""

from __future__ import annotations

import sys
import types
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
                },
                "param_groups": [{"betas": (0.9, 0.999), "weight_decay": decay} for decay in (0.1, 0.0)],
            },
        }
        states = {
            "module": {},
            "buffer_names": [],
            "param_shapes": groups,
            "global_steps": step,
            "dp_world_size": dp,
            "ds_config": {"train_batch_size": 4, "gradient_clipping": 1.0},
            "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
            **model,
        }
        torch.save(states, save / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save(
            {"optimizer_state_dict": optimizer}, save / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        )
    return save


def write_tied_pipeline(folder: Path, stages: list[dict[str, tuple[int, ...]]], monkeypatch: Any) -> Path:
    """ZeRO-1 under a PipelineModule, one rank per stage; equal names on two stages are a tied weight."""
    module = types.ModuleType("deepspeed.utils.tensor_fragment")
    module.fragment_address = type("fragment_address", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    for name in ("deepspeed", "deepspeed.utils", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    save = folder / "global_step4"
    save.mkdir(parents=True)
    for stage, shapes in enumerate(stages):
        mapping, first = {}, 0
        for name, shape in shapes.items():
            mapping[name] = module.fragment_address()  # type: ignore[attr-defined]
            mapping[name].__dict__.update(numel=torch.Size(shape).numel(), start=first)
            first += mapping[name].numel
        flat = torch.arange(float(first)) + 1000 * stage
        state = {"step": torch.tensor(4.0), "exp_avg": flat + 0.25, "exp_avg_sq": flat + 0.5}
        optimizer = {
            "zero_stage": 1,
            "single_partition_of_fp32_groups": [flat],
            "param_slice_mappings": [mapping],
            "base_optimizer_state": {"state": {0: state}, "param_groups": []},
        }
        states = {
            "module": None,
            "param_shapes": [{name: torch.Size(shape) for name, shape in shapes.items()}],
            "global_steps": 4,
            "dp_world_size": 1,
        }
        torch.save(states, save / f"mp_rank_{stage:02d}_model_states.pt")
        torch.save(
            {"optimizer_state_dict": optimizer}, save / f"zero_pp_rank_0_mp_rank_{stage:02d}_optim_states.pt"
        )
    return save
