"""`llmtrain checkpoint export`: a checkpoint in another tool's format, whole under its name or not there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from llmtrain.checkpoint import open_checkpoint
from llmtrain.checkpoint.files import sync_folder
from llmtrain.errors import CheckpointError, ConfigError, Problem

# How the other tool loads it. The loop works around DeepSpeed 0.19.8: after a universal load all parameter
# groups of ZeRO-3 share one step counter, which each of them then advances.
_HOW = {
    "universal": """load it with "checkpoint": {"load_universal": true} and engine.load_checkpoint("OUT")
at ZeRO-3, then: for s in engine.optimizer.optimizer.state.values(): s["step"] = s["step"].clone()""",
    "dcp": """load it with torch.distributed.checkpoint.load(state, checkpoint_id="OUT",
  planner=DefaultLoadPlanner(allow_partial_load=True)), state of model.NAME and optimizer.state.NAME""",
}


def export_checkpoint(
    what: Path, out: Path, form: str, on_reject: Callable[[Path, str], None] | None = None
) -> str:
    """Writes WHAT (a run's newest checkpoint, or a checkpoint) as `universal` or `dcp`; tells what was done.

    Raises ConfigError when `out` is there already, CheckpointError when the checkpoint is damaged or was
    taken without the optimizer's moments; then nothing is at `out`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        fix = "it is already there: give a new folder, or remove this one first"
        raise ConfigError(Problem("out", str(out), "command line", fix))
    checkpoint = open_checkpoint(what, on_reject)
    bare = [name for name, tensor in checkpoint.manifest.tensors.items() if tensor.kinds() == ["fp32"]]
    if form == "universal" and bare:
        raise CheckpointError(
            f"{checkpoint.path} has no moments of {bare[0]}, as a universal checkpoint must: use --format dcp"
        )
    part = out.absolute().with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.mkdir(0o755)
    try:
        if form == "universal":
            from llmtrain.interchange.universal import write_universal

            write_universal(checkpoint, part)
        else:
            from llmtrain.interchange.dcp import write_dcp

            write_dcp(checkpoint, part)
        sync_folder(part)
        os.rename(part, out)  # replaces an empty folder, and fails on any other
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return f"{out}: step {checkpoint.step} of {checkpoint.path}\n{_HOW[form].replace('OUT', str(out))}"
