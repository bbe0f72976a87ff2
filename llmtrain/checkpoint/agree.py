"""Work that every rank does and whose failure every rank learns of, so that none waits for a lost one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmtrain.engine.seam import Comm
from llmtrain.errors import EngineError, LlmtrainError


class Alone:
    """The Comm of a process that has no other ranks."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        """Nobody to wait for."""

    def gather(self, value: object) -> list[object]:
        """The value alone."""
        return [value]

    def broadcast(self, value: object) -> object:
        """The value itself."""
        return value


def on_every_rank(comm: Comm, task: str, work: Callable[[], Any]) -> list[Any]:
    """Every rank's result of `work` (JSON-serialisable), in rank order, on every rank.

    Raises the same EngineError on all ranks when it failed on some: the task, and rank and cause of each.
    """
    local: Exception | None = None
    try:
        answer = [work(), None]
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        local, answer = error, [None, sentence(error)]
    answers: list[Any] = comm.gather(answer)
    failed = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(answers) if failure]
    if failed:
        shown = "; ".join(failed[:4]) + (f"; and {len(failed) - 4} more ranks" if len(failed) > 4 else "")
        raise EngineError(f"{task} failed: {shown}") from local
    return [value for value, _ in answers]


def on_rank_0(comm: Comm, task: str, work: Callable[[], Any]) -> Any:
    """Rank 0's result of `work` on every rank; the same EngineError on all ranks when it failed."""
    local: Exception | None = None
    answer: list[Any] = [None, None]
    if comm.rank == 0:
        try:
            answer = [work(), None]
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
            local, answer = error, [None, sentence(error)]
    shared: Any = comm.broadcast(answer)
    value, failure = shared
    if failure:
        raise EngineError(f"{task} failed: {failure}") from local
    return value


def sentence(error: Exception) -> str:
    """What went wrong, for somebody who sees neither the traceback nor the rank."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error) if isinstance(error, LlmtrainError) else f"{type(error).__name__}: {error}"
