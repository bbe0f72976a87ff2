"""`llmtrain init …`: looks at the text and the machine, and writes the two files to begin with."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmtrain.cli.options import Actions, add_verb, at_least
from llmtrain.errors import ConfigError, DataError, Problem

PACKED, MARKED_UP = 4.0, 0.1  # text in a packed byte; text in a byte of HTML
RECORD_BYTES = 2000  # of text, in formats whose files hold many documents
HTML, COLUMNS = (".html", ".htm", ".xhtml"), (".parquet", ".arrow")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tar", ".warc", ".wet", *COLUMNS)
MESSAGES = ("messages", "conversations")


def init_verb(verbs: Actions[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    init = add_verb(verbs, "init", _init, "write a run file and a corpus file for text, model and machine")
    init.add_argument("text", help="a folder of text or conversations, a file, or a pattern")
    init.add_argument("--model", metavar="ID", help="go on from a model on the Hub or in a folder")
    init.add_argument("--name", help="of the run and the files (default: the folder's)")
    init.add_argument("--ranks", type=int, metavar="N", help="GPUs it will have (default: this machine's)")
    init.add_argument("--device", metavar="NAME", help="a GPU such as h200 (default: this machine's)")
    init.add_argument(
        "--hours", type=float, metavar="H", help="time to train (default: 24 on GPUs, 0.5 on a CPU)"
    )
    init.add_argument("--yes", action="store_true", help="write without asking, as when nobody can be asked")


def _init(arguments: argparse.Namespace) -> int:
    from llmtrain.init.sizing import new_model, tuned_model
    from llmtrain.init.writing import corpus_file, paths, run_file, safe_name, write

    at_least(1, {"--ranks": arguments.ranks})
    if arguments.hours is not None and not 0 < arguments.hours < 1e5:
        raise ConfigError(Problem("--hours", arguments.hours, "command line", "must be above 0"))
    name = safe_name(arguments.name or arguments.text)
    corpus, run = paths(name)
    text = measured(arguments.text)
    model = arguments.model
    if text.messages and model is None:
        fix = "these are conversations, which a model that exists learns by its own chat template; name it"
        raise ConfigError(Problem("--model", None, "command line", f"{fix}: --model Qwen/Qwen3-0.6B"))
    machine = at_hand(arguments.device, arguments.ranks)
    hours = arguments.hours or (0.5 if machine.kind == "cpu" else 24.0)
    sizes = tuned_model(text, machine, _parameters(model)) if model else new_model(text, machine, hours)
    files = {corpus: corpus_file(name, text, sizes, model), run: run_file(name, text, sizes, machine, model)}
    kind = "conversations" if text.messages else "text"
    print(f"{text.files:,} files of {kind}, {text.bytes / 1e6:,.1f} MB; {machine.count} × {machine.name}")
    if not arguments.yes and sys.stdin.isatty() and not _agreed(files):
        return 0
    write(files)
    ranks = f" --ranks {machine.count}" if machine.count > 1 else ""
    print(f"wrote {corpus} and {run}. Next:\n  llmtrain data build {corpus}\n  llmtrain plan {run}{ranks}")
    print(f"  llmtrain train {run}{ranks}")
    return 0


def _agreed(files: dict[Path, str]) -> bool:
    for path, content in files.items():
        print(f"\n--- {path}\n{content}", end="")
    return input("\nwrite them? [Y/n] ").strip().lower() in ("", "y", "yes")


def measured(path: str) -> Any:
    """How much text there is, as the build would find it. Raises DataError when there is none."""
    from data_prep.corpus import SourceSection
    from data_prep.files import list_files
    from data_prep.packings import named_packing
    from llmtrain.init.sizing import Text

    found = list_files(SourceSection(path=path), "text")
    size, documents, messages = 0.0, 0, ""
    for file in found:
        packed = named_packing(file.path) is not None
        suffix = (Path(file.path.stem).suffix if packed else file.path.suffix).lower()
        content = file.bytes * (MARKED_UP if suffix in HTML else 1.0)
        content *= PACKED if packed or suffix in COLUMNS else 1.0
        size += content
        documents += max(1, int(content / RECORD_BYTES)) if suffix in RECORDS else 1
        if not messages and suffix in (".jsonl", ".ndjson") and not packed:
            messages = _messages_field(file.path)
    if not size:
        raise DataError(f"text = {path!r}: the {len(found)} files there are empty")
    return Text(path, len(found), size, documents, messages)


def _messages_field(path: Path) -> str:
    """The field of a record that holds a conversation, or an empty string."""
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline(1 << 20)
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    fields = record if isinstance(record, dict) else {}
    return next((name for name in MESSAGES if isinstance(fields.get(name), list)), "")


def at_hand(device: str | None, ranks: int | None) -> Any:
    """The machine that is meant: the one that was named, or this one."""
    from llmtrain.init.sizing import Machine
    from llmtrain.launch import likely_device
    from llmtrain.report.planned import _device

    cores = len(os.sched_getaffinity(0))
    if device is None and likely_device() == "cuda":
        gpus = _gpus()
        if gpus:
            return Machine(gpus[0][0], "cuda", ranks or len(gpus), gpus[0][1])
    kind, memory = _device(device or likely_device())
    if kind == "cpu":
        return Machine(f"CPU of {cores} cores", "cpu", ranks or 1, None, cores)
    return Machine((device or "GPU").upper(), kind, ranks or 1, memory)


def _gpus() -> list[tuple[str, int]]:
    """Name and bytes of each GPU, as the driver's own program tells them."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in done.stdout.splitlines()]
    return [(name.strip(), int(size) * 2**20) for name, _, size in rows if size.strip().isdigit()]


def _parameters(model: str) -> int | None:
    """How many parameters a model in a folder has; a Hub id is not asked for."""
    from llmtrain.plan.model_shape import shape_of

    config = Path(model, "config.json")
    if not config.is_file():
        return None
    content = json.loads(config.read_text(encoding="utf-8"))
    shape = shape_of(content.get("text_config", content))
    return shape.parameters if shape else None
