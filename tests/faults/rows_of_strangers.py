"""Rows S1 and S4 of the fault table: what a stranger's files may do, in every door they come in by.

A row is a function `row(folder, number, draw)`: trial `number` in a folder that all trials of the row share;
which promise broke, or an empty string. `benchmarks/untrusted.py` runs them all, the tests a sample.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pickle
import random
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / folder) for folder in ("unit/export", "unit/data", "data_prep")]
from corpora import corpus_file  # noqa: E402
from export_models import build_model, reload_here, save_model, write_tokenizer  # noqa: E402
from text_files import jsonl  # noqa: E402

from data_prep.build import build  # noqa: E402
from llmtrain.checkpoint import newest  # noqa: E402
from llmtrain.config.load import load_run  # noqa: E402
from llmtrain.config.schema import ModelSection  # noqa: E402
from llmtrain.config.template import load_template  # noqa: E402
from llmtrain.data.dataset import open_dataset  # noqa: E402
from llmtrain.data.tokenizer_files import tokenizer_files  # noqa: E402
from llmtrain.data.verify import verify  # noqa: E402
from llmtrain.errors import InputError, LlmtrainError  # noqa: E402
from llmtrain.evaluate import load_stage  # noqa: E402
from llmtrain.export import export  # noqa: E402
from llmtrain.generate import Sampling, generate  # noqa: E402
from llmtrain.model.build import hf_config  # noqa: E402
from llmtrain.model.weights import WeightFiles  # noqa: E402
from llmtrain.trained import find_subject, load_model, model_config  # noqa: E402

RUN = {
    "name": "tiny",
    "model": {"config": {"model_type": "llama"}},
    "data": {"train": [{"path": "data"}]},
    "schedule": {"steps": 3},
}


class Canary:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def saved_run(folder: Path) -> Path:
    """A run folder with one checkpoint."""
    save_model(build_model("llama"), folder, run_yaml=yaml.safe_dump(RUN))
    return folder


def use_run(run: Path, out: Path) -> None:
    """All that reads a run folder: the newest checkpoint, its state, its model, its export."""
    checkpoint = newest(run)
    if checkpoint is not None:
        with checkpoint.reader() as reader:
            for name, entry in checkpoint.manifest.tensors.items():
                for piece in entry.slices:
                    reader.read(name, piece.kind, piece.start, piece.length)
    load_model(find_subject(str(run)))
    export(run, out)


def use_hub_folder(folder: Path) -> None:
    """All that reads a Hugging Face folder: to go on from it, to score it, to complete a prompt."""
    hf_config(ModelSection(source=str(folder)), 10)
    WeightFiles(str(folder))
    tokenizer_files(folder)
    subject = find_subject(str(folder))
    load_stage(subject, model_config(subject))
    list(generate(str(folder), "w3 w4", Sampling(max_new_tokens=1, temperature=0.0)))


def hub_folder(folder: Path) -> Path:
    """A model as it comes from the Hub."""
    build_model("llama").save_pretrained(folder)
    write_tokenizer(folder)
    return folder


# --- S1 ----------------------------------------------------------------------------------------------------


def hostile(form: str, alarm: Path) -> bytes:
    """A file that makes `alarm` when it is unpickled: bare, as torch.save writes it, as numpy does."""
    raw = pickle.dumps(Canary(alarm), protocol=2)
    out = io.BytesIO()
    if form == "pickle":
        return raw
    if form == "torch":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for name, content in (("data.pkl", raw), ("version", b"3\n"), ("byteorder", b"little")):
                archive.writestr(f"archive/{name}", content)
    else:
        np.save(out, np.array([Canary(alarm)], object), allow_pickle=True)
    return out.getvalue()


class Victims:
    """One of each that is read: a run, a model, a dataset, a corpus with its tokenizer, files of settings."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run, self.hub = saved_run(folder / "run"), hub_folder(folder / "hub")
        (folder / "in").mkdir()
        for name in (
            "a.jsonl",
            "b.parquet",
            "c.arrow",
            "d.jsonl.gz",
            "e.json",
            "f.csv",
            "g.tar",
            "h.txt.zst",
        ):
            (folder / "in" / name).write_bytes(jsonl(["some text"]) if name == "a.jsonl" else b"")
        tokenizer = {"source": str(self.hub)}
        self.corpus = corpus_file(folder, sources=[{"path": str(folder / "in")}], tokenizer=tokenizer)
        build(self.corpus)
        (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
        (folder / "ds.json").write_text("{}")
        self.uses: list[tuple[Path, Callable[[], object]]] = [
            *((path, self.use_run) for path in _files(self.run)),
            *((path, self.use_hub) for path in _files(self.hub)),
            *((path, self.use_data) for path in _files(folder / "out")),
            *((path, self.use_corpus) for path in _files(folder / "in")),
            *((self.hub / name, self.use_corpus) for name in ("tokenizer.json", "tokenizer_config.json")),
            (self.corpus, self.use_corpus),
            (folder / "run.yaml", lambda: load_run(folder / "run.yaml")),
            (folder / "ds.json", lambda: load_template(str(folder / "ds.json"))),
        ]

    def use_run(self) -> None:
        """All that reads a run folder."""
        use_run(self.run, self.folder / "exported")

    def use_hub(self) -> None:
        """All that reads a model."""
        use_hub_folder(self.hub)

    def use_data(self) -> None:
        """All that reads a dataset."""
        open_dataset(self.folder / "out", "train")
        verify(self.folder / "out")

    def use_corpus(self) -> None:
        """A build of the corpus."""
        build(self.corpus, [f"output={self.folder}/again"], overwrite=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


victims_in = functools.cache(Victims)  # made once for a folder
FORMS = ("pickle", "torch", "numpy")


def pickle_in_place(folder: Path, number: int, draw: random.Random) -> str:
    """S1: a hostile pickle in the place of every file that is read is never executed."""
    victims = victims_in(folder)
    path, use = victims.uses[number // len(FORMS) % len(victims.uses)]
    alarm = folder / "alarm"
    whole = path.read_bytes()
    path.write_bytes(hostile(FORMS[number % len(FORMS)], alarm))
    said = ""
    try:
        with pytest.MonkeyPatch.context() as patched:
            reload_here(patched)
            use()
    except (LlmtrainError, ValueError, OSError):
        pass
    except Exception as error:  # noqa: BLE001 - that it is no sentence is told
        said = f"{type(error).__name__}: {error}"
    finally:
        path.write_bytes(whole)
        for name in ("exported", "again"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return f"{path.name} was executed" if alarm.exists() else said and f"{path.name}: {said}"


# --- S4 ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def remote_code(alarm: Path) -> Iterator[None]:
    """What transformers would fetch and run, in place of which the alarm goes off; with `peft` installed."""

    def fetched(*_: Any, **__: Any) -> None:
        alarm.touch()
        raise OSError("nothing is fetched here")

    names = ["modeling_utils.lazy_import_flash_attention", "dynamic_module_utils.get_class_in_module"]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(patch(f"transformers.{name}", fetched))
        stack.enter_context(patch("transformers.models.auto.auto_factory.is_peft_available", lambda: True))
        yield


AUTO = {
    "AutoConfig": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}
KERNEL = "evil/kernel"
CODE: list[tuple[str, dict[str, Any], bool]] = [  # file, what it says besides, whether it may be refused
    ("config.json", {"auto_map": AUTO, "trust_remote_code": True}, False),
    ("config.json", {"auto_map": AUTO, "model_type": "evil"}, True),
    ("config.json", {"_attn_implementation_internal": KERNEL, "_attn_implementation": KERNEL}, False),
    ("config.json", {"attn_implementation": KERNEL, "text_config": {"_attn_implementation": KERNEL}}, True),
    ("tokenizer_config.json", {"auto_map": AUTO, "tokenizer_class": "Evil", "trust_remote_code": True}, True),
]


def code_of_a_model(folder: Path, number: int, draw: random.Random) -> str:
    """S4: Python, or a kernel, that a model brings or names is never run, whatever its files ask for."""
    hub, alarm = folder / f"hub-{number}", folder / f"alarm-{number}"
    name, says, may_refuse = CODE[number % len(CODE)]
    hub_folder(hub)
    (hub / "evil.py").write_text(f"open({str(alarm)!r}, 'w')\nclass Evil: pass\n")
    (hub / "custom_generate").mkdir()
    shutil.copy(hub / "evil.py", hub / "custom_generate/generate.py")
    content = json.loads((hub / name).read_text())
    (hub / name).write_text(json.dumps(content | says))
    try:
        with remote_code(alarm):
            use_hub_folder(hub)
    except InputError as error:
        if not may_refuse:
            return f"refused: {error}"
    return "code was run" if alarm.exists() else ""
