"""A build's chunks as Ray tasks: any node of the cluster that sees the output folder and the corpus helps.

Nothing but this file knows of Ray. A task takes one chunk from the queue and works on it, as `crew` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.crew import POLL_SECONDS, Laborer
from data_prep.leases import Queue
from llmtrain.errors import ConfigError, LlmtrainError, Problem


class RayTasks:
    """The work is done by the cluster that `ray` finds (RAY_ADDRESS), or by one that it starts here."""

    def __init__(self, folder: Path):
        try:
            import ray
        except ImportError:
            fix = "install the extra: pip install ray"
            raise ConfigError(Problem("--on", "ray", "command line", fix)) from None
        self.ray = ray
        self.folder = folder
        self.started = not ray.is_initialized()
        if self.started:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
            ray.init(log_to_driver=False, include_dashboard=False)
        self.most = int(ray.cluster_resources().get("CPU", 1))
        self.take = ray.remote(num_cpus=1)(_take)
        self.tasks: list[Any] = []

    def step(self, number: int, hear: Callable[[int], None]) -> None:
        """Keeps as many tasks under way as the cluster has CPUs, and waits a moment."""
        waiting = len(os.listdir(Queue(self.folder / f"queue-{number}").todo))
        while len(self.tasks) < min(self.most, max(waiting, 1)):
            self.tasks.append(self.take.remote(str(self.folder), number))
        ready, self.tasks = self.ray.wait(self.tasks, num_returns=1, timeout=POLL_SECONDS)
        hear(0)
        for task in ready:
            try:
                self.ray.get(task)
            except self.ray.exceptions.RayTaskError:
                pass  # the queue has it
            except self.ray.exceptions.RayError as error:
                raise LlmtrainError(f"Ray lost a task of the build, what is done is kept: {error}") from None

    def end(self) -> None:
        """Lets go of the cluster."""
        for task in self.tasks:
            self.ray.cancel(task, force=True)
        if self.started:
            self.ray.shutdown()


@cache
def _laborer(folder: str) -> Laborer:
    return Laborer(Path(folder))


def _take(folder: str, number: int) -> bool:
    """One chunk, in a process of the cluster."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return _laborer(folder).take(number)
