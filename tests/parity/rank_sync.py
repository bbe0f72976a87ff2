"""Rank side of test_sync_budget: where the host would wait for a GPU, counted on a CPU.

Streams and events are stood in for by ones that note what is asked of them, and the accelerator says that it
does not resolve dependencies itself, so DeepSpeed takes the paths that it takes on CUDA.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from rank_programs import RandomRows, open_run
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.config.world import World

# What reads a value, or a size that depends on values, off the device.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")


class Waits:
    """Notes who waits, while a micro-batch is under way."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.counting = False

    def note(self, what: str) -> None:
        if self.counting:
            frames = [
                f
                for f in traceback.extract_stack()[:-2]
                if "/tests/" not in f.filename and "/torch/" not in f.filename
            ]
            self.found.append(
                f"{what} at {frames[-1].filename.rpartition('site-packages/')[2]}:{frames[-1].lineno}"
            )


class Reads(TorchDispatchMode):
    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            self.waits.note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def pretend_cuda(waits: Waits) -> None:
    """Makes the accelerator of this process one with streams, whose host waits are noted."""
    from deepspeed.accelerator import get_accelerator

    class Stream:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def wait_stream(self, _: Any) -> None: ...
        def wait_event(self, _: Any) -> None: ...
        def query(self) -> bool:
            return True

        def record(self, *_: Any) -> None: ...
        def synchronize(self) -> None:
            waits.note(f"{type(self).__name__}.synchronize")

    class Event(Stream): ...

    kind, current = type(get_accelerator()), Stream()
    for name, value in {
        "is_synchronized_device": lambda self: False,
        "resolves_data_dependency": lambda self: False,
        "handles_memory_backpressure": lambda self: False,
        "use_host_timers": lambda self: True,
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda self, *_: current,
        "default_stream": lambda self, *_: current,
        "stream": lambda self, _: contextlib.nullcontext(),
        "synchronize": lambda self, *_: waits.note("accelerator.synchronize"),
    }.items():
        setattr(kind, name, value)
    torch.Tensor.record_stream = lambda self, _: None  # type: ignore[method-assign,assignment]


@contextlib.contextmanager
def counted(engine: Any, waits: Waits) -> Iterator[None]:
    """Counts from the step's first micro-batch to its update, which may read the norm."""
    update = engine.deepspeed._take_model_step

    def uncounted(*args: Any, **kwargs: Any) -> None:
        waits.counting = False
        update(*args, **kwargs)

    engine.deepspeed._take_model_step = uncounted
    with Reads(waits):
        waits.counting = True
        yield
    engine.deepspeed._take_model_step = update


def waits_within_micro_batches(world: World, model: str, **sections: Any) -> list[str]:
    """Every wait of a step of several micro-batches after the first two steps, by where it is."""
    from llmtrain.engine import environment, zero

    waits = Waits()
    zero._unseen = lambda work: work  # it hides what it does from modes, from this one too
    began = environment.start

    def start(*args: Any, **kwargs: Any) -> Any:
        comm = began(*args, **kwargs)
        pretend_cuda(waits)
        return comm

    environment.start = start
    plan, engine = open_run(world, model, 5, **sections)
    assert plan.batch.accumulation > 1, "one micro-batch shows no wait between two"
    for step in range(2):
        engine.train_step(RandomRows(5, step), 1e-3, step)
    with counted(engine, waits):
        engine.train_step(RandomRows(5, 2), 1e-3, 2)
    found = list(waits.found)
    engine.close()
    return found
