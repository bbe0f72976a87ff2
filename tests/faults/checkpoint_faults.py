"""Faults of disks and processes around a checkpoint; each function is one trial.

`test_checkpoint_faults.py` runs a few of each. A trial makes what it needs in `folder` (empty), draws from
`seed`, and returns an empty string, or which promise broke. Ranks are threads, in a forked process where they
are killed; `rank_save_kills.py` does it with real engines.
"""

from __future__ import annotations

import errno
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "unit" / "checkpoint")]
from fake_engine import (  # noqa: E402
    FakeEngine,
    State,
    empty_like,
    make_facts,
    on_ranks,
    same_state,
    save_on,
    small_state,
)
from kills import die_before  # noqa: E402
from small_disks import small_disk  # noqa: E402

from llmtrain.checkpoint import CheckpointFacts, SaveEnd, Saver, newest  # noqa: E402
from llmtrain.checkpoint.files import HashedFile  # noqa: E402
from llmtrain.engine.seam import KINDS  # noqa: E402
from llmtrain.errors import CheckpointError, LlmtrainError  # noqa: E402

RANKS = 2
saving = importlib.import_module("llmtrain.checkpoint.save")  # the package has a function of this name


def state_of(step: int, elements: int = 0) -> State:
    """What a run holds after `step` steps; with `elements`, one tensor more."""
    state = small_state(step)
    if elements:
        state["model.wide.weight"] = {kind: torch.randn(elements) for kind in KINDS}
    return state


def facts_of(folder: Path, step: int) -> CheckpointFacts:
    """What a run in `folder` says of itself; its tokenizer has two files, which every checkpoint takes in."""
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        tokenizer.mkdir(parents=True)
        (tokenizer / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}\n')
        (tokenizer / "tokenizer_config.json").write_text('{"eos_token": "b"}\n')
    return make_facts(step, tokenizer_folder=tokenizer)


def run_saves(
    folder: Path, steps: list[int], wait: bool, keep: int = 2, elements: int = 0, tell: Any = None
) -> list[SaveEnd]:
    """Saves each step on every rank; how they ended on rank 0. Raises what a rank raised."""
    states = {step: state_of(step, elements) for step in steps}
    facts = {step: facts_of(folder, step) for step in steps}

    def rank(comm: Any) -> list[SaveEnd]:
        ends: list[SaveEnd] = []

        def heard(end: SaveEnd) -> None:
            ends.append(end)
            if tell and comm.rank == 0:
                tell(end)

        engine = FakeEngine(comm, states[steps[0]])
        saver = Saver(engine, folder, keep, lambda step, tokens: facts[step], heard)
        for step in steps:
            engine.state = states[step]
            saver.save(step, step, wait)
            saver.settle(comm.gather(saver.state()))
        saver.finish()
        return ends

    results = on_ranks(RANKS, rank)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results[0]


def not_whole(folder: Path, least: int = 0, elements: int = 0) -> str:
    """Why the newest checkpoint is not exactly what one step held, or is older than `least`."""
    try:
        found = newest(folder)
    except CheckpointError as error:
        return f"nothing loads: {error}"
    if found is None:
        return f"no checkpoint, step {least} was committed" if least else ""
    if found.step < least:
        return f"step {found.step} is loaded, though step {least} was committed"
    copy = empty_like(state_of(found.step, elements))
    with found.reader() as reader:
        FakeEngine(on_ranks(1, lambda comm: comm)[0], copy).load(reader, {})
    return "" if same_state(copy, state_of(found.step, elements)) else f"step {found.step} is a mix"


# --- killed (R2, R12, R13) ---------------------------------------------------------------------------------


def _forked(work: Callable[[Callable[[SaveEnd], None]], None]) -> tuple[int, int]:
    """Runs `work(tell)` in a process: its pid, and where it writes the steps that it was told of."""
    told, tells = os.pipe()
    write = os.write
    child = os.fork()
    if child == 0:
        try:
            work(lambda end: write(tells, b"%d\n" % end.step if end.folder else b"") and None)
            os._exit(0)
        finally:
            os._exit(3)
    os.close(tells)
    return child, told


def _ended(child: int, told: int) -> tuple[int, int]:
    """Exit status, and the last step that was told to be committed (0: none)."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(told, "rb") as file:
        steps = [int(line) for line in file.read().split()]
    return status, max(steps, default=0)


def killed_at_operation(folder: Path, at: int, keep: int = 2, wait: bool = False) -> tuple[str, bool]:
    """All ranks die before the `at`-th file operation of three saves; and whether they came so far."""

    def work(tell: Callable[[SaveEnd], None]) -> None:
        die_before(at)
        run_saves(folder, [4, 5, 6], wait, keep, tell=tell)

    run_saves(folder, [3], wait=True)
    status, committed = _ended(*_forked(work))
    if status not in (0, 9):
        return f"the run ended with {status}", False
    return not_whole(folder, max(committed, 3)), status == 9


def killed_at_a_moment(folder: Path, seed: int) -> str:
    """SIGKILL at a random moment of saves whose writers are slow, rank 1's most; 1 to 3 are kept."""
    draw = random.Random(seed)
    keep, moment = draw.randint(1, 3), draw.uniform(0, 0.25)

    def work(tell: Callable[[SaveEnd], None]) -> None:
        fsync = os.fsync

        def slow(descriptor: int) -> None:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            time.sleep(0.03 if "rank-00001" in name else 0.003)
            fsync(descriptor)

        os.fsync = slow
        run_saves(folder, [4, 5, 6, 7, 8, 9], wait=False, keep=keep, tell=tell)

    run_saves(folder, [3], wait=True)
    child, told = _forked(work)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    _, committed = _ended(child, told)
    return not_whole(folder, max(committed, 3))


# --- damaged (R7, R8, R9) ----------------------------------------------------------------------------------


def _flip(step: Path, draw: random.Random) -> list[str]:
    path = draw.choice(sorted(step.iterdir()))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return [path.name]


def _some(step: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(step.iterdir()))


def _truncate(step: Path, draw: random.Random) -> list[str]:
    path = _some(step, draw)
    os.truncate(path, draw.randrange(path.stat().st_size))
    return [path.name]


def _empty(step: Path, draw: random.Random) -> list[str]:
    path = _some(step, draw)
    os.truncate(path, 0)
    return [path.name]


def _remove(step: Path, draw: random.Random) -> list[str]:
    path = _some(step, draw)
    path.unlink()
    return [path.name]


def _swap(step: Path, draw: random.Random) -> list[str]:
    first, second = (step / f"rank-0000{rank}.safetensors" for rank in range(2))
    first.rename(step / "aside")
    second.rename(first)
    (step / "aside").rename(second)
    return [first.name, second.name]


def _other_steps(step: Path, draw: random.Random) -> list[str]:
    """A file of the checkpoint before, which is of the same size."""
    path = step / draw.choice(["rank-00000.safetensors", "rank-00001.safetensors", "manifest.json", "COMMIT"])
    shutil.copy(step.parent / "step-00000003" / path.name, path)
    return [path.name, "manifest.json"]


def _copied_step(step: Path, draw: random.Random) -> list[str]:
    """The whole checkpoint before, under this one's name."""
    shutil.rmtree(step)
    shutil.copytree(step.parent / "step-00000003", step)
    return ["manifest.json"]


def _other_steps_word(step: Path, draw: random.Random) -> list[str]:
    """A manifest, and the COMMIT that vouches for it, of the checkpoint before."""
    for name in ("manifest.json", "COMMIT"):
        shutil.copy(step.parent / "step-00000003" / name, step / name)
    return ["manifest.json"]


def _other_runs_word(step: Path, draw: random.Random) -> list[str]:
    """The same of another run's checkpoint of this step, whose files have the same names and sizes."""
    run = step.parents[1]
    other = run / "other run"
    if not other.exists():
        save_on(RANKS, other, state_of(77), facts_of(run, 4))
    for name in ("manifest.json", "COMMIT"):
        shutil.copy(other / "checkpoints" / step.name / name, step / name)
    return [f"rank-0000{rank}.safetensors" for rank in range(RANKS)]


def _extra(step: Path, draw: random.Random) -> list[str]:
    name = f"rank-0000{draw.randint(2, 9)}.safetensors"
    shutil.copy(step / "rank-00000.safetensors", step / name)
    return [name]


def _replace(name: str, by: str, step: Path, draw: random.Random) -> list[str]:
    """R9: what says which files count is something else."""
    path = step / name
    content = path.read_bytes()
    path.unlink()
    if by == "a dangling link":
        path.symlink_to(step / "nowhere")
    elif by == "a link":
        (step.parent / "elsewhere").write_bytes(content)
        path.symlink_to(step.parent / "elsewhere")
    elif by == "a path out of it":
        path.write_text("../step-00000003/manifest.json\n")
    elif by == "binary":
        path.write_bytes(draw.randbytes(draw.randint(1, 9000)))
    elif by == "empty":
        path.touch()
    elif by == "a folder":
        path.mkdir()
    return [name, "manifest.json"]


REPLACED = {
    f"{name} is {by}": partial(_replace, name, by)
    for name in ("COMMIT", "manifest.json")
    for by in ("a dangling link", "a link", "a path out of it", "binary", "empty", "a folder", "missing")
}
DAMAGE: dict[str, Callable[[Path, random.Random], list[str]]] = {
    "a flipped bit": _flip,
    "cut off": _truncate,
    "empty": _empty,
    "missing": _remove,
    "swapped rank files": _swap,
    "a file of another step": _other_steps,
    "a folder of another step": _copied_step,
    "manifest and COMMIT of another step": _other_steps_word,
    "manifest and COMMIT of another run": _other_runs_word,
    "a rank file too many": _extra,
    **REPLACED,
}


def damaged(folder: Path, kind: str, seed: int) -> str:
    """Step 4 is damaged: that is found before anything is used, a file is named, and step 3 is taken."""
    if not (folder / "checkpoints").exists():
        run_saves(folder, [3, 4], wait=True)
    step = folder / "checkpoints" / "step-00000004"
    whole = folder / "whole"
    shutil.copytree(step, whole, symlinks=True)
    try:
        names = DAMAGE[kind](step, random.Random(f"{kind} {seed}"))
        reasons: list[str] = []
        found = newest(folder, lambda path, reason: reasons.append(reason))
        if found is None or found.step != 3:
            return f"{kind} of {names} was not found"
        if len(reasons) != 1 or not any(name in reasons[0] for name in names):
            return f"{kind} of {names} was told as {reasons}"
        return not_whole(folder, 3)
    finally:
        shutil.rmtree(step)
        whole.rename(step)


# --- disks (R10, R11) --------------------------------------------------------------------------------------


def disk_full(folder: Path, percent: int, wait: bool, preflight: bool) -> str:
    """Room for `percent` of a checkpoint beside the one that is there; without `preflight`, found late."""
    elements = 200_000
    run_saves(folder / "measured", [3], wait=True, elements=elements)
    size = sum(path.stat().st_size for path in (folder / "measured").rglob("*") if path.is_file())
    spare = 0 if preflight else -(1 << 40)
    with small_disk(folder, int(size * (1.02 + percent / 100)) + 16384) as disk:
        with patch.object(saving, "_SPARE", 0):
            run_saves(disk, [3], wait=True, elements=elements)
        before = sorted(os.listdir(disk / "checkpoints"))
        why = ""
        with patch.object(saving, "_SPARE", spare):
            try:
                (end,) = run_saves(disk, [4], wait, elements=elements)
                why = end.why
            except LlmtrainError as error:
                why = str(error)
        if why and not ("no space in" in why and "need" in why and "have" in why):
            return f"the sentence is: {why}"
        if why and sorted(os.listdir(disk / "checkpoints")) != before:
            return f"left behind: {sorted(os.listdir(disk / 'checkpoints'))}"
        if not why and percent < 95:
            return f"a checkpoint was committed in {percent} % of its room"
        return not_whole(disk, 3 if why else 4, elements)


def read_only_disk(folder: Path, wait: bool) -> str:
    """The disk becomes read-only between two saves, as the kernel does after an error, and is mended."""
    with small_disk(folder, 64 << 20) as disk:
        run_saves(disk, [3], wait=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            (end,) = run_saves(disk, [4], wait)
            why = end.why
        except LlmtrainError as error:
            why = str(error)
        broken = not_whole(disk, 3)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        if broken or "Read-only file system" not in why:
            return broken or f"the sentence is: {why}"
        run_saves(disk, [5], wait)
        return not_whole(disk, 5)


def failing_writes(folder: Path, seed: int) -> str:
    """EIO, a full disk, a quota or a read-only disk at the k-th write of a rank's file."""
    draw = random.Random(seed)
    code = draw.choice([errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    at, rank, wait = draw.randrange(3), draw.randrange(RANKS), draw.random() < 0.5
    run_saves(folder, [3], wait=True, elements=2_000_000)
    writes = HashedFile._write_all
    counts: dict[Path, int] = {}

    def failing(file: HashedFile, piece: memoryview) -> None:
        counts[file.path] = counts.get(file.path, -1) + 1
        if file.path.name == f"rank-0000{rank}.safetensors" and counts[file.path] == at:
            raise OSError(code, os.strerror(code), str(file.path))
        writes(file, piece)

    why = ""
    with patch.object(HashedFile, "_write_all", failing):
        try:
            (end,) = run_saves(folder, [4], wait, elements=2_000_000)
            why = end.why
        except LlmtrainError as error:
            why = str(error)
    if f"rank {rank}: " not in why:
        return f"{os.strerror(code)} on rank {rank} was told as: {why or 'nothing'}"
    if os.listdir(folder / "checkpoints") != ["step-00000003"]:
        return f"left behind: {sorted(os.listdir(folder / 'checkpoints'))}"
    return not_whole(folder, 3, 2_000_000)
