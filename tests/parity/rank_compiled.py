"""Training with compiled blocks, on a backend that builds nothing: graphs are counted and run as they are."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from rank_programs import VOCAB, RandomRows, run_file
from torch import nn

from llmtrain.config.load import load_run
from llmtrain.config.world import World


def compiled(world: World, model: str, schedule_steps: int, **sections: Any) -> dict[str, Any]:
    """Losses of two steps (and an evaluation after them), the graphs made, and why one broke."""
    from torch._dynamo.utils import counters

    from llmtrain.engine import open_engine
    from llmtrain.model.build import hf_config
    from llmtrain.model.kernels import Kernels
    from llmtrain.plan.plan import make_plan

    graphs: list[str] = []

    def run_as_it_is(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph.code)
        return graph.forward

    def compile_module(module: nn.Module) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend=run_as_it_is)

    nn.Module.compile = compile_module  # type: ignore[method-assign, assignment]
    counters.clear()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_run(run_file(folder, model, schedule_steps, **sections))
    plan = make_plan(loaded, world.size, "cpu", environ={})
    kernels = Kernels(attention="cudnn", compile=True)
    engine = open_engine(plan, hf_config(plan.run.model, VOCAB), world, kernels=kernels)
    losses = [engine.train_step(RandomRows(5, step), plan.schedule.lr(step)).loss for step in range(2)]
    engine.evaluate(RandomRows(99, 0))
    engine.close()
    breaks = {str(why): count for why, count in counters["graph_break"].items()}
    return {"losses": losses, "graphs": len(graphs), "breaks": breaks}
