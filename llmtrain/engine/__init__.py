"""The one door to DeepSpeed: `open_engine(plan, …)` gives an `Engine`, whatever the topology.

Nothing here imports torch or DeepSpeed before it is called, so the floors above may name it freely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmtrain.config.world import World
from llmtrain.engine.seam import Engine, EvalResult, Slice, SliceReader, StepResult

if TYPE_CHECKING:
    from llmtrain.engine.comm import TorchComm
    from llmtrain.engine.watchdog import Watchdog
    from llmtrain.model.kernels import Kernels
    from llmtrain.model.weights import WeightFiles
    from llmtrain.plan.plan import Plan

__all__ = [
    "Engine",
    "EvalResult",
    "Slice",
    "SliceReader",
    "StepResult",
    "detect_device",
    "open_engine",
    "start",
]


def detect_device() -> str:
    """`cuda` or `cpu`."""
    from llmtrain.engine.environment import detect_device as detect

    return detect()


def start(
    world: World,
    device: str,
    timeout_s: float = 1800.0,
    watch: Watchdog | None = None,
    met: Callable[[], None] = lambda: None,
) -> TorchComm:
    """Joins the world, watched once all have come (`met`); call once per process, before `open_engine`."""
    from llmtrain.engine.environment import start as join

    return join(world, device, timeout_s, watch, met)


def open_engine(
    plan: Plan,
    hf_config: Any,
    world: World,
    weights: WeightFiles | None = None,
    comm: TorchComm | None = None,
    kernels: Kernels | None = None,
) -> Engine:
    """Builds this rank's part of the model in its place and hands it to DeepSpeed.

    `weights` are loaded when given, else the model is initialised from `plan.run.seed`; either way the
    result does not depend on the topology. Raises ConfigError when the model can't be cut or a kernel can't
    be had, EngineError when DeepSpeed understood the plan differently.
    """
    from llmtrain.engine.opening import open_engine as opening

    return opening(plan, hf_config, comm or start(world, plan.device), weights, kernels)
