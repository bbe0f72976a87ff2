"""Worlds of forked ranks: imports cost seconds, so one server process imports once and forks every rank.

The server must be a process of its own: once a process has run a backward pass, PyTorch refuses another
in its forks. A test calls `worlds.run("parity/rank_programs.py:train", ranks=2, stage=1)`; the named
function runs on each rank as `train(world, stage=1)` and returns something JSON can carry.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


class RankFailedError(AssertionError):
    """A rank raised, died or overran its time; the message holds every rank's last output."""


class Worlds:
    """The client side: starts the server on first use."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, program: str, ranks: int = 1, limit_s: float = 120, **arguments: Any) -> list[Any]:
        """Each rank's result, in rank order."""
        if self._server is None:
            environment = {
                **os.environ,
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        assert self._server.stdin and self._server.stdout
        request = {"program": program, "ranks": ranks, "limit_s": limit_s, "arguments": arguments}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, "the server of forked ranks died"
        reply = json.loads(answer)
        if "error" in reply:
            raise RankFailedError(reply["error"])
        return reply["results"]

    def close(self) -> None:
        """Ends the server."""
        if self._server is not None:
            assert self._server.stdin
            self._server.stdin.close()
            self._server.wait(timeout=30)


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    import deepspeed.pipe  # noqa: F401
    import deepspeed.runtime.zero.stage3  # noqa: F401
    import transformers  # noqa: F401

    import llmtrain.engine.opening  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=replies, flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = request["ranks"]
    with tempfile.TemporaryDirectory(prefix="world-") as folder:
        pids = [_fork(rank, ranks, port, request, Path(folder)) for rank in range(ranks)]
        failed = _wait(pids, request["limit_s"])
        if failed:
            logs = [
                f"--- rank {r} ---\n{(Path(folder) / f'{r}.log').read_text()[-3000:]}" for r in range(ranks)
            ]
            return {"error": f"{request['program']}: {failed}\n" + "\n".join(logs)}
        return {"results": [json.loads((Path(folder) / f"{r}.json").read_text()) for r in range(ranks)]}


def _fork(rank: int, ranks: int, port: int, request: dict[str, Any], folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setpgrp()
    status = 1
    try:
        log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_WORLD_SIZE=str(ranks),
            LOCAL_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        from llmtrain.config.world import World

        path, _, name = request["program"].partition(":")
        sys.path.insert(0, str((TESTS / path).parent))
        module = importlib.import_module(Path(path).stem)
        world = World(rank, ranks, rank, ranks, "llmtrain")
        result = getattr(module, name)(world, **request["arguments"])
        (folder / f"{rank}.json").write_text(json.dumps(result))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pids: list[int], limit_s: float) -> str:
    """What went wrong, or an empty string; after it no rank is left."""
    end = time.monotonic() + limit_s
    left = dict(enumerate(pids))
    wrong = ""
    while left:
        for rank, pid in list(left.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del left[rank]
                if status and not wrong:
                    wrong = f"rank {rank} ended with {os.waitstatus_to_exitcode(status)}"
                    end = min(end, time.monotonic() + 2)
        if left and time.monotonic() > end:
            wrong = wrong or f"no end after {limit_s:.0f} s"
            for pid in left.values():
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.02)
    return wrong


if __name__ == "__main__":
    _serve()
