"""Rank side of test_checkpoints: train and save in one topology, load and go on in another."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from rank_programs import MODELS, SEQ_LEN, VOCAB, RandomRows, open_run

from llmtrain.checkpoint import SaveEnd, Saver, background
from llmtrain.checkpoint.facts import CheckpointFacts
from llmtrain.checkpoint.load import newest
from llmtrain.checkpoint.save import save
from llmtrain.config.world import World


def _facts(plan: Any, engine: Any, step: int, model: str) -> CheckpointFacts:
    return CheckpointFacts(
        step=step,
        tokens=step * plan.batch.rows * SEQ_LEN,
        topology={
            "world": plan.topology.world,
            "pipeline": plan.topology.pipeline,
            "zero_stage": plan.topology.zero_stage,
            "precision": plan.run.precision,
        },
        dataset="random",
        config=MODELS[model],
        vocab_size=VOCAB,
        seq_len=SEQ_LEN,
        rows=plan.batch.rows,
        seed=plan.run.seed,
        run_yaml="name: parity\n",
    )


def _go_on(plan: Any, engine: Any, first: int, steps: int) -> list[float]:
    return [
        engine.train_step(RandomRows(5, step, plan.batch.rows), plan.schedule.lr(step), step).loss
        for step in range(first, first + steps)
    ]


def _is_committed(end: SaveEnd) -> None:
    assert end.folder is not None and (end.folder / "COMMIT").exists(), end.why


def _write_after(event: threading.Event) -> None:
    """Holds the thread that writes this rank's file until `event`."""

    class Held(background.HashedFile):
        def write(self, data: bytes | memoryview) -> None:
            assert event.wait(60)
            super().write(data)

    background.HashedFile = Held  # type: ignore[misc]


def save_at(world: World, folder: str, model: str, behind: bool = False, **sections: Any) -> dict[str, Any]:
    """Four steps, a save, three more; with `behind`, nothing of it is written before those three are done."""
    plan, engine = open_run(world, model, 20, **sections)
    _go_on(plan, engine, 0, 4)
    trained = threading.Event()
    if behind:
        saver = Saver(
            engine, Path(folder), 2, lambda step, _: _facts(plan, engine, step, model), _is_committed
        )
        _write_after(trained)
        saver.save(4, 0, wait=False)
    else:
        save(engine, Path(folder), _facts(plan, engine, 4, model))
    held_out = engine.evaluate(RandomRows(99, 0, 7)).loss
    losses = _go_on(plan, engine, 4, 3)
    if behind:
        assert not list(Path(folder).rglob("COMMIT"))
        trained.set()
        saver.finish()
    engine.close()
    return {"losses": losses, "held_out": held_out}


def load_at(world: World, folder: str, model: str, **sections: Any) -> dict[str, Any]:
    """The newest checkpoint, and the same three steps; other seed, so that nothing comes from the init."""
    plan, engine = open_run(world, model, 20, seed=4321, **sections)
    checkpoint = newest(Path(folder), comm=engine.comm)
    assert checkpoint is not None and checkpoint.step == 4
    engine.load(checkpoint.reader(), checkpoint.scalars)
    held_out = engine.evaluate(RandomRows(99, 0, 7)).loss
    losses = _go_on(plan, engine, 4, 3)
    engine.close()
    return {"losses": losses, "held_out": held_out}
