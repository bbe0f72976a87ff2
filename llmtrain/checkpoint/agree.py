"""Work that every rank does and whose failure every rank learns of, so that none waits for a lost one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    why = failures_told(task, [failure for _, failure in answers])
    if why:
        raise EngineError(why) from local
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


def failures_told(task: str, failures: Sequence[str | None]) -> str:
    """One sentence for what went wrong on which ranks (in rank order), or an empty string."""
    failed = [f"rank {rank}: {failure}" for rank, failure in enumerate(failures) if failure]
    more = f"; and {len(failed) - 4} more ranks" if len(failed) > 4 else ""
    return f"{task} failed: {'; '.join(failed[:4])}{more}" if failed else ""


def failure_of(work: Callable[[], object]) -> str:
    """Why `work` failed, or an empty string. Whatever failed, the other ranks wait for the answer."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
        return sentence(error)
    return ""


def sentence(error: BaseException) -> str:
    """What went wrong, for somebody who sees neither the traceback nor the rank."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error) if isinstance(error, LlmtrainError) else f"{type(error).__name__}: {error}"
