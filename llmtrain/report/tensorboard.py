"""The same numbers as metrics.jsonl, as TensorBoard events, when log.tensorboard asks for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.errors import ConfigError, Problem
from llmtrain.plan.plan import Plan


def check_installed(plan: Plan) -> None:
    """Raises ConfigError when the run wants TensorBoard and it is not there; asked before any work."""
    if plan.run.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        origin = plan.origins["log.tensorboard"]
        fix = "the tensorboard package is not installed; run: pip install tensorboard"
        raise ConfigError(Problem("log.tensorboard", True, origin, fix))


class Events:
    """A TensorBoard event file. `step` and values are those of metrics.jsonl."""

    def __init__(self, folder: Path, start: int):
        """Opens `folder` for a run with `start` steps behind it; later events of a killed run are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes every number of a record under its name."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, float(value), record["step"])

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
