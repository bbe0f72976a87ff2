"""Row S2 of the fault table: names and links that lead out of their folder, at every door they come in by.

A row is a function as in `rows_of_strangers`. The kernel watches what is out there: nothing opens it.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from rows_of_strangers import RUN, Victims, reload_here, use_hub_folder, use_run
from watched import Watched

from data_prep.build import build
from llmtrain.config.load import load_run
from llmtrain.data.tokenizer_files import tokenizer_files
from llmtrain.data.verify import verify
from llmtrain.errors import InputError
from llmtrain.export.push import check_destination
from llmtrain.model.weights import WeightFiles

OUT = ["../outside/bait", "/{outside}/bait", "x/../../outside/bait", "..", "bait\0", "a/b", ".bait", ""]


def traversal(folder: Path, number: int, draw: random.Random) -> str:
    """S2: names and links that lead out: nothing out there is opened, made, changed or taken away."""
    inside, outside = folder / "inside", folder / "outside"
    if not outside.exists():
        outside.mkdir()
        victims_in_inside = folder / "whole"
        victims_in_inside.mkdir()
        Victims(victims_in_inside)
        for name in ("bait", "bait.bin", "bait.idx", "bait.safetensors", "config.json"):
            (outside / name).write_text("secret of the outside")
    shutil.rmtree(inside, ignore_errors=True)
    shutil.copytree(folder / "whole", inside)
    act = DOORS[number % len(DOORS)]
    around = sorted(folder.iterdir())
    with Watched(outside) as watched, pytest.MonkeyPatch.context() as patched:
        reload_here(patched)
        said = act(inside, outside)
    if said or watched.seen:
        return said or f"it touched {watched.seen}"
    return "" if sorted(folder.iterdir()) == around else f"it left {sorted(folder.iterdir())}"


def _refused(act: Callable[[], object], *kinds: type[Exception]) -> str:
    try:
        act()
    except (InputError, *kinds):
        return ""
    return "it was not refused"


def _manifest_name(name: str) -> Callable[[Path, Path], str]:
    """A checkpoint whose manifest, for which its COMMIT vouches, names a file."""

    def act(inside: Path, outside: Path) -> str:
        (step,) = (inside / "run/checkpoints").iterdir()
        content = json.loads((step / "manifest.json").read_text())
        content["files"][0]["name"] = name.format(outside=outside)
        raw = json.dumps(content).encode()
        (step / "manifest.json").write_bytes(raw)
        (step / "COMMIT").write_text(f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n")
        return _refused(lambda: use_run(inside / "run", inside / "exported"))

    return act


def _shard_name(name: str) -> Callable[[Path, Path], str]:
    def act(inside: Path, outside: Path) -> str:
        path = inside / "out/manifest.json"
        content = json.loads(path.read_text())
        content["splits"]["train"]["shards"][0]["name"] = name.format(outside=outside)
        path.write_text(json.dumps(content))
        with patch("llmtrain.data.manifest.fingerprint", lambda *_: content["fingerprint"]):
            return _refused(lambda: verify(inside / "out"))

    return act


def _run_or_corpus_name(name: str) -> Callable[[Path, Path], str]:
    def act(inside: Path, outside: Path) -> str:
        named = name.format(outside=outside)
        (inside / "run.yaml").write_text(yaml.safe_dump({**RUN, "name": named}))
        said = _refused(lambda: load_run(inside / "run.yaml"))
        corpus = yaml.safe_load((inside / "corpus.yaml").read_text())
        for change in ({"name": named}, {"splits": {named: 0.1}}):
            (inside / "corpus.yaml").write_text(yaml.safe_dump({**corpus, **change}))
            said = said or _refused(lambda: build(inside / "corpus.yaml", [f"output={inside}/again"]))
        return said

    return act


def _hub_name(name: str) -> Callable[[Path, Path], str]:
    def act(inside: Path, outside: Path) -> str:
        return _refused(lambda: check_destination(name))

    return act


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Callable[[Path, Path], str]:
    """A tar archive with this member beside a good one."""

    def act(inside: Path, outside: Path) -> str:
        shutil.rmtree(inside / "in")
        (inside / "in").mkdir()
        with tarfile.open(inside / "in/a.tar", "w") as archive:
            for place, (called, of) in enumerate([(name, kind), ("good.txt", tarfile.REGTYPE)]):
                info = tarfile.TarInfo(called.format(outside=outside))
                info.type, info.linkname, info.size = (
                    of,
                    target if not place else "",
                    4 * (of == tarfile.REGTYPE),
                )
                archive.addfile(info, io.BytesIO(b"w3 w"))
        words = [f"output={inside}/again", f"sources.0.path={inside}/in", f"tokenizer.source={inside}/hub"]
        counts = build(inside / "corpus.yaml", words).manifest.counts
        right = (counts.documents_out, sum(counts.rejected.values())) == (1, 1)
        return "" if right else f"{counts.documents_out} documents, {counts.rejected}"

    return act


def _link(place: str) -> Callable[[Path, Path], str]:
    """A file that a build, a checkpoint or an export would copy on, or a checkpoint would read, is a link."""

    def act(inside: Path, outside: Path) -> str:
        path = inside / place.replace("STEP", next((inside / "run/checkpoints").iterdir()).name)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(outside / ("bait" if path.suffix else ""))
        if place.startswith("hub"):
            words = [
                f"output={inside}/again",
                f"sources.0.path={inside}/in",
                f"tokenizer.source={inside}/hub",
            ]
            return _refused(lambda: tokenizer_files(inside / "hub")) or _refused(
                lambda: build(inside / "corpus.yaml", words)
            )
        return _refused(lambda: use_run(inside / "run", inside / "exported"))

    return act


def _index(name: str) -> Callable[[Path, Path], str]:
    """A model whose index of weights, or adapter, names a place elsewhere: neither is followed."""

    def act(inside: Path, outside: Path) -> str:
        hub = inside / "hub"
        there = name.format(outside=outside)
        weights = dict.fromkeys(WeightFiles(str(hub)).names(), there + ".safetensors")
        index = {"metadata": {}, "weight_map": weights}
        (hub / "model.safetensors.index.json").write_text(json.dumps(index))
        adapter = {"base_model_name_or_path": str(Path(hub, there).parent), "peft_type": "LORA"}
        (hub / "adapter_config.json").write_text(json.dumps(adapter))
        (hub / "model.safetensors").rename(hub / "part-1.safetensors")  # only the index could tell
        said = _refused(lambda: WeightFiles(str(hub)))
        (hub / "model.safetensors.index.json").unlink()
        use_hub_folder(hub)
        return said

    return act


DOORS: list[Callable[[Path, Path], str]] = [
    *map(_manifest_name, OUT),
    *map(_shard_name, OUT),
    *map(_run_or_corpus_name, OUT),
    *map(_hub_name, ["../x", "/etc/passwd", "a/../b", "a/b/c", "a\0b", "-a/b"]),
    *map(_member, ["../outside/new.txt", "{outside}/new.txt", "a/../../outside/new.txt"]),
    _member("l.txt", tarfile.SYMTYPE, "../../outside/bait"),
    _member("l.txt", tarfile.LNKTYPE, "../outside/bait"),
    _link("hub/chat_template.jinja"),
    _link("hub/tokenizer_config.json"),
    _link("run/checkpoints/STEP"),
    _link("run/checkpoints/STEP/manifest.json"),
    _link("run/checkpoints/STEP/COMMIT"),
    _link("run/checkpoints/STEP/rank-00000.safetensors"),
    _index("../outside/bait"),
    _index("{outside}/bait"),
]
