"""Helping a build that runs in another process or on another machine, through the folder that both see."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.build import output_of, work_folder, workers_of
from data_prep.corpus import CorpusConfig
from data_prep.crew import Processes
from data_prep.leases import GONE, Watch
from data_prep.output import MARK
from data_prep.work import PLAN, Work
from llmtrain.config.load import load_yaml_model
from llmtrain.errors import DataError, LlmtrainError


@dataclass(frozen=True)
class JoinReport:
    """What was done for another's build."""

    folder: str
    chunks: int

    def render(self) -> str:
        """One line."""
        return f"helped the build of {self.folder} with {self.chunks:,} chunks"


def join(corpus_path: str | Path, overrides: Sequence[str] = ()) -> JoinReport:
    """Works off chunks of the build that runs in the corpus's output folder until none is left.

    Raises DataError when none runs there or it is of another corpus, LlmtrainError when it dies.
    """
    corpus = load_yaml_model(corpus_path, CorpusConfig, overrides).config
    partial = work_folder(output_of(corpus))
    work = _under_way(partial)
    if work is None:
        raise DataError(f"no build of {corpus.folder} is under way that could be joined: leave --join out")
    ours, theirs = (_decisive(each) for each in (corpus, work.plan.corpus))
    changed = [key for key in ours if ours[key] != theirs[key]]
    if changed:
        raise DataError(
            f"the build of {corpus.folder} that is under way is of another corpus (it differs in "
            f"{', '.join(changed)}): join it with the file it was started with"
        )
    watch = Watch()
    ended = f"the build of {corpus.folder} has died: run the command without --join to go on with it"
    if _gone(watch, partial):
        raise DataError(ended)
    helpers = Processes(work.folder, workers_of(corpus), joined=True)
    try:
        while helpers.alive:
            time.sleep(0.2)
            helpers.check()
            if work.folder.exists() and _gone(watch, partial):
                raise LlmtrainError(f"{ended} ({helpers.taken} chunks were done here)")
    finally:
        helpers.end()
    helpers.check()
    return JoinReport(corpus.folder, helpers.taken)


def _under_way(partial: Path) -> Work | None:
    """The work that a build has begun, None when there is none."""
    if not partial.is_dir():
        return None
    for folder in partial.iterdir():
        if (folder / PLAN).is_file() and folder.name != "new" and GONE not in folder.name:
            return Work.open(folder)
    return None


def _decisive(corpus: CorpusConfig) -> dict:
    return corpus.model_dump(mode="json", exclude={"workers", "output"})


def _gone(watch: Watch, partial: Path) -> bool:
    """Whether the build itself has ended without having finished."""
    try:
        who = json.loads((partial / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it is just being written, or all is done
        return False
    return watch.gone(who, partial / MARK)
