"""Building an engine: the model in its place, the optimizer, DeepSpeed around both."""

from __future__ import annotations

import contextlib
import gc
import io
from typing import TYPE_CHECKING, Any

import deepspeed
import torch

from llmtrain.engine.base import DTYPES
from llmtrain.engine.comm import TorchComm
from llmtrain.engine.deterministic import explaining, make_deterministic
from llmtrain.engine.nvme import deepspeed_config
from llmtrain.engine.optimizer import adamw
from llmtrain.engine.partition import Zero3Partitioner
from llmtrain.engine.pipeline import PipeEngine, StagePipeline, StepLoss
from llmtrain.engine.zero import ZeroEngine
from llmtrain.engine.zeropp import require_quantizer
from llmtrain.errors import EngineError
from llmtrain.model.build import build_partitioned, build_stage
from llmtrain.model.kernels import Kernels, choose_kernels
from llmtrain.model.stages import plan_cuts
from llmtrain.plan.plan import Plan

if TYPE_CHECKING:
    from llmtrain.model.weights import WeightFiles


def open_engine(
    plan: Plan, hf_config: Any, comm: TorchComm, weights: WeightFiles | None, kernels: Kernels | None
) -> ZeroEngine | PipeEngine:
    """See `llmtrain.engine.open_engine`."""
    if plan.run.deterministic:
        make_deterministic()
    engine = _open(plan, hf_config, comm, weights, kernels)
    if plan.run.deterministic:
        explained = explaining(engine.train_step, plan.origins.get("deterministic", "run"))
        engine.train_step = explained  # type: ignore[method-assign]
    gc.collect()
    gc.freeze()  # else each full collection walks over all that the libraries hold: a fifth of a second
    return engine


def _open(
    plan: Plan, hf_config: Any, comm: TorchComm, weights: WeightFiles | None, kernels: Kernels | None
) -> ZeroEngine | PipeEngine:
    run, topology = plan.run, plan.topology
    if kernels is None:
        kernels = choose_kernels(run.kernels, plan.device, run.precision, run.data.mask_documents)
    device = (
        torch.device(plan.device, torch.cuda.current_device())
        if plan.device == "cuda"
        else torch.device("cpu")
    )
    dtype = DTYPES[run.precision]
    require_quantizer(plan, comm)
    config = deepspeed_config(plan, comm)
    cuts = plan_cuts(hf_config, topology.pipeline)
    index = comm.rank // topology.dp  # DeepSpeed's topology: pipeline is the outer axis
    if topology.zero_stage == 3:
        partitioner = Zero3Partitioner(config, comm.rank)
        stage = build_partitioned(
            hf_config, dtype, device, run.seed, weights, kernels, zero3=partitioner, recompute=run.recompute
        )
    else:
        stage = build_stage(
            hf_config, cuts[index], dtype, device, run.seed, weights, kernels, recompute=run.recompute
        )
    optimizer = adamw(stage.parameters(), run.optimizer, fused=kernels.optimizer == "fused")
    _require_equal_groups(comm, optimizer)
    if topology.pipeline == 1:
        engine, *_ = deepspeed.initialize(model=stage, optimizer=optimizer, config=config)
        return ZeroEngine(plan, stage, engine, comm, dp_rank=comm.rank)
    loss_fn = StepLoss(stage)
    with contextlib.redirect_stdout(io.StringIO()):  # PipelineModule prints its topology
        module = StagePipeline(stage, index, topology.pipeline, loss_fn)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    pipe = PipeEngine(plan, stage, engine, comm, dp_rank=comm.rank % topology.dp)
    pipe.step_loss = loss_fn
    return pipe


def _require_equal_groups(comm: TorchComm, optimizer: torch.optim.Optimizer) -> None:
    """DeepSpeed all-reduces once per parameter group in a pipeline: unequal counts would hang for ever."""
    counts = comm.gather(len(optimizer.param_groups))
    if len(set(map(str, counts))) > 1:
        raise EngineError(f"parameter groups differ between ranks: {counts}")
