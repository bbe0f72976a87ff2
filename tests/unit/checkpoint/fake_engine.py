"""An engine without a model: ranks are threads, state is a dict of tensors cut into slices."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from llmtrain.checkpoint import CheckpointFacts
from llmtrain.engine.seam import EvalResult, Slice, SliceReader, StepResult

State = dict[str, dict[str, torch.Tensor]]  # name -> kind -> the whole tensor


class Meeting:
    """Where the ranks of one fake world exchange values; a rank that dies breaks it for all."""

    def __init__(self, size: int):
        self.size = size
        self.values: list[object] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)


class ThreadComm:
    """A Comm whose ranks are threads; values pass through JSON, as they may on a real wire."""

    def __init__(self, rank: int, meeting: Meeting):
        self.rank, self.size, self._meeting = rank, meeting.size, meeting

    def barrier(self) -> None:
        self._meeting.barrier.wait()

    def gather(self, value: object) -> list[object]:
        self._meeting.values[self.rank] = json.dumps(value)
        self.barrier()
        values = [json.loads(str(value)) for value in self._meeting.values]
        self.barrier()
        return values

    def broadcast(self, value: object) -> object:
        return self.gather(value)[0]


class FakeEngine:
    """Holds `state`; gives the `rank`-th of `size` nearly equal parts of each tensor."""

    def __init__(self, comm: Any, state: State, scalars: Mapping[str, float] | None = None):
        self.comm = comm
        self.state = state
        self._scalars = dict(scalars or {"step": 3.0})

    def bounds(self, numel: int) -> tuple[int, int]:
        share = -(-numel // self.comm.size)
        return min(self.comm.rank * share, numel), min((self.comm.rank + 1) * share, numel)

    def slices(self) -> Iterator[Slice]:
        for name, kinds in self.state.items():
            for kind, tensor in kinds.items():
                start, stop = self.bounds(tensor.numel())
                yield Slice(name, kind, tuple(tensor.shape), start, tensor.reshape(-1)[start:stop])

    def scalars(self) -> dict[str, float]:
        return dict(self._scalars)

    def load(self, reader: SliceReader, scalars: dict[str, float]) -> None:
        self._scalars = dict(scalars)
        for name, kinds in self.state.items():
            for kind, tensor in kinds.items():
                start, stop = self.bounds(tensor.numel())
                tensor.reshape(-1)[start:stop] = reader.read(name, kind, start, stop - start)

    def train_step(self, rows: Any, lr: float) -> StepResult:
        raise NotImplementedError

    def evaluate(self, rows: Any) -> EvalResult:
        return EvalResult(loss_sum=2.5 * rows.valid_tokens, tokens=rows.valid_tokens)

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


def small_state(seed: int = 0) -> State:
    """Tensors of odd sizes with moments, a narrow and a wide buffer, a scalar."""
    torch.manual_seed(seed)
    shapes = {"model.embed.weight": (13, 5), "model.norm.weight": (7,), "head.weight": (1,)}
    state: State = {
        name: {kind: torch.randn(shape) for kind in ("fp32", "exp_avg", "exp_avg_sq")}
        for name, shape in shapes.items()
    }
    state["model.mask"] = {"buffer": torch.rand(3, 3) > 0.5}
    state["model.scale"] = {"buffer": torch.randn(9).bfloat16()}
    state["model.count"] = {"buffer": torch.tensor(1 << 40)}
    return state


def make_facts(step: int = 3, **changes: Any) -> CheckpointFacts:
    values: dict[str, Any] = {
        "step": step,
        "tokens": step * 1024,
        "topology": {"world": 2, "pipeline": 1, "zero_stage": 1, "precision": "fp32"},
        "dataset": "d" * 64,
        "config": {"model_type": "llama", "hidden_size": 5, "rope_parameters": {"rope_theta": 1e4}},
        "vocab_size": 13,
        "seq_len": 8,
        "rows": 4,
        "seed": 1234,
        "run_yaml": "name: tiny\n",
    }
    return CheckpointFacts(**{**values, **changes})


def on_ranks(size: int, work: Callable[[ThreadComm], Any]) -> list[Any]:
    """Every rank's result, or the exception it ended with, in rank order."""
    meeting = Meeting(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadComm(rank, meeting))
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a rank hangs"
    return results


def save_on(size: int, folder: Path, state: State, facts: CheckpointFacts, keep: int = 2) -> Path:
    """Saves on `size` fake ranks; raises what they raised."""
    from llmtrain.checkpoint import save

    results = on_ranks(size, lambda comm: save(FakeEngine(comm, state), folder, facts, keep))
    for result in results:
        if isinstance(result, BaseException):
            raise result
    assert len(set(results)) == 1
    path = results[0]
    assert isinstance(path, Path)
    return path


def same_state(left: State, right: State) -> bool:
    return all(torch.equal(left[name][kind], right[name][kind]) for name in left for kind in left[name])


def empty_like(state: State) -> State:
    return {
        name: {kind: torch.zeros_like(tensor) for kind, tensor in kinds.items()}
        for name, kinds in state.items()
    }
