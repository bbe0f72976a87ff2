"""Rank side: real engines save behind the loop, and one rank is killed at a chosen point of the save.

Most points are passed by rank 0 alone. There rank 1 dies while rank 0 stands at the point and then goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtrain.checkpoint import CheckpointFacts, Saver, newest
from llmtrain.config.world import World

sys.path.insert(0, str(Path(__file__).parent.parent / "parity"))
from rank_programs import MODELS, ROWS, SEQ_LEN, VOCAB, RandomRows, open_run  # noqa: E402

# point: (operation of os, what its path must match); the rank dies before it. `{}` is its own number.
POINTS = {
    "before its file is made": ("open", r"step-00000003/rank-{}"),
    "inside its file": ("write", r"step-00000003/rank-{}"),
    "before its file is synced": ("fsync", r"step-00000003/rank-{}"),
    "before the small files": ("open", r"step-00000003/config\.json"),
    "before the manifest": ("open", r"step-00000003/manifest\.json"),
    "before COMMIT is written": ("write", r"step-00000003/COMMIT\.part"),
    "before COMMIT gets its name": ("rename", r"step-00000003/COMMIT\.part"),
    "before the name is synced": ("fsync", r"step-00000003$"),  # the second time
    "while the old one is removed": ("unlink", r"step-00000002/COMMIT"),
}
COMMITTED = list(POINTS)[-2:]  # the new checkpoint counts, at the others the one before does
OF_EVERY_RANK = list(POINTS)[:3]  # the others are rank 0's alone


def cells() -> list[tuple[int, int, str]]:
    """(ZeRO stage, rank, point) of the whole table."""
    return [(stage, rank, point) for stage in range(4) for rank in range(2) for point in POINTS]


def _passes(rank: int, point: str) -> bool:
    return rank == 0 or point in OF_EVERY_RANK


def _arrange(point: str, rank: int, victim: int, folder: Path) -> None:
    """Lets rank `victim` die at the point, or while rank 0 stands there."""
    if _passes(victim, point):
        if rank == victim:
            _at(point, rank, lambda: _die(folder))
    elif rank == victim:
        threading.Thread(target=lambda: (_wait_for(folder / "reached"), _die(folder)), daemon=True).start()
    else:
        _at(point, rank, lambda: ((folder / "reached").mkdir(), _wait_for(folder / "killed")))


def _die(folder: Path) -> None:
    (folder / "killed").mkdir()
    os._exit(9)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def _at(point: str, rank: int, what: Callable[[], object]) -> None:
    """Does something before the operation that is the point."""
    name, pattern = POINTS[point]
    left = 2 if point == "before the name is synced" else 1
    wanted = re.compile(pattern.replace("{}", f"0000{rank}"))
    operation: Callable[..., Any] = getattr(os, name)

    def watched(target: Any, *rest: Any, **names: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        nonlocal left
        if wanted.search(path):
            left -= 1
            if not left:
                what()
        return operation(target, *rest, **names)

    setattr(os, name, watched)


def _digests(engine: Any) -> dict[str, str]:
    return {
        f"{part.name}|{part.kind}|{part.start}|{part.tensor.numel()}": hashlib.sha256(
            part.tensor.float().contiguous().numpy().tobytes()
        ).hexdigest()
        for part in engine.slices()
    }


def save_and_die(world: World, folder: str, victim: int, point: str, stage: int) -> None:
    """Two steps and a save, a third step and a save behind the loop in which rank `victim` dies."""
    plan, engine = open_run(world, "llama", 20, deepspeed=f"zero{stage}", precision="fp32")

    def facts(step: int, tokens: int) -> CheckpointFacts:
        return CheckpointFacts(
            step=step,
            tokens=tokens,
            topology={"world": world.size, "zero_stage": stage},
            dataset="random",
            config=MODELS["llama"],
            vocab_size=VOCAB,
            seq_len=SEQ_LEN,
            rows=ROWS,
            seed=plan.run.seed,
            run_yaml="name: killed\n",
        )

    saver = Saver(engine, Path(folder), 1, facts, lambda end: None)
    for step in range(3):
        engine.train_step(RandomRows(5, step), plan.schedule.lr(step))
        if step:
            record = Path(folder, f"digests-{step + 1}-{world.rank}.json")
            record.write_text(json.dumps(_digests(engine)))
            if step == 2:
                _arrange(point, world.rank, victim, Path(folder))
            saver.save(step + 1, step + 1, wait=step == 1)
    while True:  # the loop goes on: its exchange is what tells of the death
        engine.train_step(RandomRows(5, 9), 0.0)
        saver.settle(engine.comm.gather(saver.state()))


def judge(folder: Path, victim: int, point: str) -> str:
    """Whether the rank was killed there, and what loads is exactly the step it should be; empty if so.

    When rank 1 died while rank 0 was about to commit what both had written, either step may be it.
    """
    if not (folder / "killed").exists():
        return "no rank was killed"
    found, expected = (
        newest(folder),
        (3,) if point in COMMITTED else (2,) if _passes(victim, point) else (2, 3),
    )
    if found is None or found.step not in expected:
        return f"found {found and found.step}, not step {expected}"
    compared = 0
    with found.reader() as reader:
        for record in folder.glob(f"digests-{found.step}-*.json"):
            for key, digest in json.loads(record.read_text()).items():
                name, kind, start, length = key.split("|")
                data = reader.read(name, kind, int(start), int(length)).float().numpy().tobytes()
                if hashlib.sha256(data).hexdigest() != digest:
                    return f"{key} of step {found.step} is another step's"
                compared += 1
    return "" if compared else "nothing was compared"
