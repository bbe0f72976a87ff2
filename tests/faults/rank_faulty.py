"""A rank in which something goes wrong at a chosen place of a whole run; all else is `llmtrain train`.

    torchrun --nproc-per-node 2 tests/faults/rank_faulty.py FAULT RUN.yaml key=value …
    python tests/faults/rank_faulty.py --own FAULT RUN.yaml …       `llmtrain train --ranks 2` with such ranks
    worlds.run("faults/rank_faulty.py:train", 2, fault={…}, arguments=[…])

FAULT is JSON: {"rank": 1, "place": "forward", "step": 3, "kind": "kill", "mark": FILE}. The step is counted
from 1; FILE is made by the rank just before, so that whoever watches knows the moment; a fault whose file is
there already does not happen again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KINDS = (
    *("kill", "exception", "exit 0", "memory", "stop", "sleep", "hold the interpreter", "ask", "spike"),
    *("slow", "short of time"),  # up to `step`, and from then on no more
    "clock",  # `offset_s` fast
    "other code",  # of the same version
    "fill",  # a disk, from `step` on until `until`, or to the end
)
QUANTUM_S = 0.005  # so long a rank that is short of time may run
# place: (module, class or "" for the module itself, function); the fault comes when it is called
PLACES = {
    "start-up": ("llmtrain.train", "", "run"),
    "agreement": ("llmtrain.train", "", "check_agreement"),
    "opening": ("llmtrain.engine", "", "open_engine"),
    "loading": ("llmtrain.engine.base", "DeepSpeedEngineBase", "load"),
    "training": ("llmtrain.engine.base", "DeepSpeedEngineBase", "_begin"),
    "data": ("llmtrain.data.dataset", "Dataset", "windows"),
    "forward": ("llmtrain.model.stages", "StageModel", "hidden"),
    "backward": ("deepspeed.runtime.engine", "DeepSpeedEngine", "backward"),
    "update": ("deepspeed.runtime.engine", "DeepSpeedEngine", "_take_model_step"),
    "saving": ("llmtrain.checkpoint.background", "Saver", "save"),
}
EARLY_STAGES_BACKWARD = ("torch.autograd", "", "backward")  # of a pipeline's stages but the last


class Now:
    """Which step this rank is in, counted from 1, and whether it evaluates."""

    step = 0
    evaluates = False


def strike(kind: str) -> None:
    """What goes wrong."""
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "exception":
        raise RuntimeError("a fault that was put here")
    elif kind == "exit 0":
        sys.exit(0)
    elif kind == "memory":
        _run_out_of_memory()
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "ask":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "sleep":
        time.sleep(3600)
    elif kind == "hold the interpreter":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # none may wake it up
        ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the interpreter lock


def _run_out_of_memory() -> None:
    """The process may take 64 MiB more, and wants more."""
    import torch

    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20),) * 2)
    taken = []
    while True:
        taken.append(torch.ones(4 << 20))


def inject(fault: dict[str, Any]) -> None:
    """Puts the fault in its place, if it is this rank's; rank -1 is every rank."""
    if fault and "slice_s" in fault:
        importlib.import_module("llmtrain.report.stragglers").SLICE_S = fault["slice_s"]
    if not fault or fault["rank"] not in (-1, int(os.environ["RANK"])) or _struck(fault):
        return
    place, step = fault["place"], fault.get("step", 1)
    _follow_steps(fault)
    if fault["kind"] in ("spike", "fill"):
        return
    if fault["kind"] in ("slow", "short of time"):
        _slow_down(fault)
        return
    if fault["kind"] == "clock":
        now = time.time
        time.time = lambda: now() + fault["offset_s"]
        return
    if fault["kind"] == "other code":
        importlib.import_module("llmtrain.job").source_digest = lambda: "other"
        return
    if place == "evaluation":
        for engine in ("zero", "pipeline"):
            where = (f"llmtrain.engine.{engine}", "", "micro_batch")
            _before(where, lambda: Now.evaluates and Now.step >= step, fault)
    elif place in ("start-up", "agreement", "opening", "loading"):  # before any step
        _before(PLACES[place], lambda: True, fault)
    else:
        places = [PLACES[place], EARLY_STAGES_BACKWARD] if place == "backward" else [PLACES[place]]
        for each in places:
            _before(each, lambda: Now.step >= step and (place == "saving" or not Now.evaluates), fault)


def _slow_down(fault: dict[str, Any]) -> None:
    """Until step `step` a forward pass takes `times` as long, or the process gets so much less time."""
    from llmtrain.model.stages import StageModel

    original = StageModel.hidden

    def stretched(*values: Any, **names: Any) -> Any:
        began = time.perf_counter()
        found = original(*values, **names)
        if Now.step > fault["step"]:
            Path(fault["mark"]).touch()
        elif fault["kind"] == "slow":
            time.sleep((fault["times"] - 1) * (time.perf_counter() - began))
        return found

    StageModel.hidden = stretched  # type: ignore[method-assign]
    rank = os.getpid()
    if fault["kind"] == "slow" or os.fork():
        return
    with contextlib.suppress(ProcessLookupError):  # as a quota is kept: stopped, again and again
        while not _struck(fault):
            os.kill(rank, signal.SIGSTOP)
            time.sleep((fault["times"] - 1) * QUANTUM_S)
            os.kill(rank, signal.SIGCONT)
            time.sleep(QUANTUM_S)
    os._exit(0)


def _struck(fault: dict[str, Any]) -> bool:
    return Path(fault["mark"]).exists()


def _before(place: tuple[str, str, str], when: Callable[[], bool], fault: dict[str, Any]) -> None:
    module, owner, name = place
    holder: Any = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    original = getattr(holder, name)

    @functools.wraps(original)
    def faulty(*values: Any, **names: Any) -> Any:
        if when() and not _struck(fault):
            Path(fault["mark"]).write_text(str(time.time()))
            strike(fault["kind"])
        return original(*values, **names)

    setattr(holder, name, faulty)


def _follow_steps(fault: dict[str, Any]) -> None:
    """Keeps `Now`; a loss that is a spike is made here, on every rank alike."""
    from llmtrain.engine.pipeline import PipeEngine
    from llmtrain.engine.zero import ZeroEngine

    def followed(train: Any) -> Any:
        def train_step(self: Any, rows: Any, lr: float, step: int = 0, *more: Any, **names: Any) -> Any:
            Now.step, Now.evaluates = step + 1, False
            if fault["kind"] == "fill":
                _fill(Path(fault["disk"]) / "filler", fault)
            undo = _spike(self) if fault["kind"] == "spike" and Now.step == fault["step"] else lambda: None
            try:
                return train(self, rows, lr, step, *more, **names)
            finally:
                undo()

        return train_step

    def evaluating(evaluate: Any) -> Any:
        def called(self: Any, rows: Any) -> Any:
            Now.evaluates = True
            return evaluate(self, rows)

        return called

    for engine in (ZeroEngine, PipeEngine):
        engine.train_step = followed(engine.train_step)  # type: ignore[method-assign]
        engine.evaluate = evaluating(engine.evaluate)  # type: ignore[method-assign]


def _fill(filler: Path, fault: dict[str, Any]) -> None:
    """Before each step, as space comes back when a half-written save is taken away."""
    if Now.step == fault["until"]:
        filler.unlink()
    elif fault["step"] <= Now.step < (fault["until"] or math.inf):
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))


def _spike(engine: Any) -> Callable[[], None]:
    from rank_poison import poison_loss

    return poison_loss(engine, 100.0)


def train(world: Any, fault: dict[str, Any], arguments: list[str], environment: Any = None) -> int:
    """A rank of a forked world; a failed run ends the process with its status."""
    os.environ["LLMTRAIN_LAUNCHER"] = "llmtrain"
    os.environ.update((environment or {}).get(str(world.rank), {}))
    inject(fault)
    from llmtrain.train import main

    mine = [word for word in arguments if not word.startswith("@")]
    mine += [
        word.partition(":")[2] for word in arguments if word.startswith(f"@{world.rank}:")
    ]  # only this rank's
    return main(mine)


def train_asking(world: Any, **arguments: Any) -> int:
    """As `train`, with ranks that ask each other after every micro-batch whether to stop."""
    from llmtrain.stopping import StopWithinStep

    StopWithinStep.EVERY_S = 0.0
    return train(world, **arguments)


def export_run(world: Any, run: str, out: str) -> None:
    """An export in a process of its own."""
    from llmtrain.export import export

    export(Path(run), Path(out))


def _main(argv: Sequence[str]) -> int:
    words = [word for word in argv if not word.startswith("--local_rank")]  # deepspeed puts it first
    if words[0] == "--own":
        from llmtrain import cli, launch

        program = (sys.executable, __file__, words[1])
        launch.launch = functools.partial(launch.launch, program=program)
        return cli.main(["train", *words[2:]])
    inject(json.loads(words[0]))
    from llmtrain.train import main

    return main(words[1:])


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
