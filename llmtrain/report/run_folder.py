"""The run folder: what was decided, said in full, and where everything of a run lies.

runs/NAME/
├── config.yaml       the run as it began, resolved; each value with where it came from; trains again as it is
├── ds_config.json    what DeepSpeed was given
├── starts/2/ …       the same two files of a later start that went on with other settings or in another world
├── environment.json  versions, device, kernels
├── metrics.jsonl     see report/metrics.py
├── ledger.json       starts, how each ended, rollbacks: see report/ledger.py
├── logs/rank-N.log   what each rank said
├── in-use.lock       held while a start trains here: see report/run_lock.py
├── checkpoints/      step-00000200/ …
└── events/           TensorBoard, when asked for
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmtrain.config.schema import RunConfig
from llmtrain.config.secrets import RedactingFormatter
from llmtrain.config.world import World
from llmtrain.config.yaml_lines import parse_scalar
from llmtrain.errors import EngineError, InputError
from llmtrain.report.metrics import wall_clock

if TYPE_CHECKING:
    from llmtrain.plan.plan import Plan

PRIVATE_FOLDER = 0o750  # owner and group; the umask takes away more, never adds
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
log = logging.getLogger("llmtrain")


class _LogFormatter(RedactingFormatter):
    """Each line with the wall clock in ISO 8601, as in metrics.jsonl."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return wall_clock(record.created)


class _LogFile(logging.FileHandler):
    """A log file on a full disk lacks lines; it ends no run, and fills no screen with tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name for it
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def unwritable(path: Path, error: OSError) -> EngineError:
    """What is said of a file of the run without which it can't go on."""
    fix = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
    why = error.strerror or error
    return EngineError(f"{path} can't be written ({why}): {fix}, then the same command goes on")


class RunFolder:
    """The paths of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.ds_config = self.path / "ds_config.json"
        self.starts = self.path / "starts"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.ledger = self.path / "ledger.json"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "events"

    @property
    def is_new(self) -> bool:
        """Whether nothing of a run is here yet (a launcher makes the logs before its ranks begin)."""
        return not any(map(Path.exists, (self.config, self.ledger, self.metrics, self.checkpoints)))

    def discard(self) -> None:
        """Takes away what a start of a new run left whose input turned out to be wrong; never a record."""
        if self.checkpoints.exists() or self.metrics.exists() and self.metrics.stat().st_size:
            return
        for path in (self.config, self.ds_config, self.environment, self.metrics, self.ledger):
            path.unlink(missing_ok=True)
        for folder in (self.logs, self.events):
            shutil.rmtree(folder, ignore_errors=True)

    def write(self, plan: Plan, start: int = 1, goes_on: bool = False) -> str:
        """Writes the resolved configuration of the run's start number `start`; the name of its file.

        A start that goes on writes over none of those before it; one that begins anew keeps the last one's
        aside. Raises InputError when the folder can't be written.
        """
        run, deepspeed = resolved_yaml(plan.run, {}), json.dumps(plan.deepspeed, indent=2) + "\n"
        header = f"# The run as it was resolved, for {plan.topology.world} ranks. Origins are on the right.\n"
        try:
            self.path.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            if self.path.stat().st_mode & stat.S_IROTH:
                warning = f"{self.path} can be read by everyone on this machine; to change that: chmod o-rwx"
                print(f"warning: {warning} {self.path}", file=sys.stderr)
            for path in [self.config, *self.starts.glob("*/config.yaml")]:
                if _holds(path, run, deepspeed) and (goes_on or path == self.config):
                    return str(path.relative_to(self.path))
            place = self.path
            if goes_on and self.config.exists():
                place = self.starts / str(start)
            elif self.config.exists():
                self._keep_aside(start - 1)
            place.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            config = place / self.config.name
            replace_text(config, header + resolved_yaml(plan.run, plan.origins))
            replace_text(place / self.ds_config.name, deepspeed)
            return str(config.relative_to(self.path))
        except OSError as error:
            raise InputError(f"output_dir = {self.path}: can't be written ({error.strerror})") from error

    def _keep_aside(self, start: int) -> None:
        """The configuration of a start of which nothing else is left."""
        kept = self.starts / str(start)
        if start > 0 and not kept.exists():
            kept.mkdir(PRIVATE_FOLDER, parents=True)
            for path in (self.config, self.ds_config):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, kept / path.name)

    def write_environment(
        self, versions: Mapping[str, str], device: str, kernels: Mapping[str, Any], world: World
    ) -> None:
        """Writes what the run runs on and with."""
        content = {
            "versions": dict(versions),
            "device": device,
            "ranks": world.size,
            "launcher": world.launcher,
            "kernels": dict(kernels),
        }
        replace_text(self.environment, json.dumps(content, indent=2) + "\n")

    def log_to_file(self, rank: int) -> Path:
        """Sends this process's log to logs/rank-N.log, besides wherever it goes already; that file."""
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"rank-{rank}.log"
        handler = _LogFile(path)
        handler.setFormatter(_LogFormatter(LOG_FORMAT))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False  # the screen is the progress display's
        return path

    @contextmanager
    def talk_to_log(self, rank: int) -> Iterator[None]:
        """Sends what libraries print meanwhile to logs/rank-N.log instead of the screen."""
        with (
            (self.logs / f"rank-{rank}.log").open("a", encoding="utf-8") as sink,
            contextlib.redirect_stdout(sink),
        ):
            yield


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def _holds(config: Path, run: str, deepspeed: str) -> bool:
    """Whether `config` and its DeepSpeed file say this, wherever the values came from."""
    try:
        same = parse_scalar(config.read_text(encoding="utf-8")) == parse_scalar(run)
        return same and config.with_name("ds_config.json").read_text(encoding="utf-8") == deepspeed
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False


def resolved_yaml(run: RunConfig, origins: Mapping[str, str]) -> str:
    """A run as YAML that loads to the same run, each value followed by where it came from."""
    return "\n".join(_lines(run.model_dump(mode="json"), origins, (), "")) + "\n"


def _lines(
    section: Mapping[str, Any], origins: Mapping[str, str], path: tuple[str, ...], indent: str
) -> list[str]:
    lines: list[str] = []
    for name, value in section.items():
        here = (*path, str(name))
        if value is None or value == {}:
            continue
        if isinstance(value, dict):
            lines += [f"{indent}{_flow(name)}:", *_lines(value, origins, here, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            lines.append(f"{indent}{_flow(name)}:")
            for index, item in enumerate(value):
                body = _lines(item, origins, (*here, str(index)), indent + "    ")
                body[0] = f"{indent}  - {body[0].lstrip()}"
                lines += body
        else:
            text = f"{indent}{_flow(name)}: {_flow(value)}"
            origin = origins.get(".".join(here), "")
            lines.append(f"{text:<58}  # {origin}" if origin else text)
    return lines


def _flow(value: Any) -> str:
    """One value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
