"""The ids of `transformers.AutoTokenizer`, by which every consumer goes, proven before a build.

Some of its classes (Llama's, Gemma's, Qwen's …) take only the vocabulary from `tokenizer.json` and do the
rest their own way: a prefix space, say. Where that gives other ids than the file does, the dataset gets a
tokenizer that says what AutoTokenizer does; where AutoTokenizer can't read the folder, it is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_prep.corpus import CorpusConfig
from data_prep.engines import ODD, odd_texts
from data_prep.layouts import json_object
from data_prep.tokenizer import FILES, copy_tokenizer, load_tokenizer
from llmtrain.config.search_path import code_command
from llmtrain.data.links import refuse_link_out
from llmtrain.data.vocabulary import TOKENIZER_JSON
from llmtrain.errors import DataError, LlmtrainError

CONFIG = "tokenizer_config.json"
AS_THE_FILE = (None, "PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
_SECONDS = 300
# not from the working folder, whose files are not ours to run
_CHILD = "from data_prep.autotokenizer import answer; answer()"


@dataclass(frozen=True)
class Proven:
    """A tokenizer folder whose tokenizer.json gives AutoTokenizer's ids, and what to say about it."""

    folder: Path
    notes: tuple[str, ...] = ()


def as_transformers_reads(source: Path, corpus: CorpusConfig, scratch: Path) -> Proven:
    """The folder itself, or one in `scratch` whose tokenizer.json gives the ids that AutoTokenizer gives.

    Raises DataError when AutoTokenizer can't read the folder.
    """
    name = str(corpus.tokenizer.source)
    for path in (*(source / each for each in FILES), source / "config.json"):
        if path.is_file():  # before anything reads it
            refuse_link_out(path)
    reference = load_tokenizer(source)
    if not _decides_by_itself(source):
        return Proven(source)
    texts = [*ODD, *odd_texts(source)]
    said = _ask(source, name)
    notes = _about_begin(said, corpus)
    differs = _difference(reference, Tokenizer.from_str(said["tokenizer"]), texts)
    if differs is None:
        return Proven(source, notes)
    folder = scratch / "tokenizer"
    copy_tokenizer(source, folder)
    (folder / TOKENIZER_JSON).write_text(said["tokenizer"], encoding="utf-8")
    config = json_object(source / CONFIG)
    config.pop("legacy", None)  # of the class that is no more asked
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    again = Tokenizer.from_str(_ask(folder, name)["tokenizer"])
    if (left := _difference(load_tokenizer(folder), again, texts)) is not None:
        raise DataError(
            f"tokenizer.source = {name!r}: what {said['class']} of transformers does can't be written to a "
            f"tokenizer.json (the ids of {left!r} differ): give a folder whose tokenizer_class is "
            "PreTrainedTokenizerFast"
        )
    return Proven(
        folder,
        (
            f"tokenizer {name}: transformers reads it as {said['class']}, whose ids differ from those of its "
            f"tokenizer.json (on {differs!r}); the dataset and its tokenizer have those of transformers",
            *notes,
        ),
    )


def _decides_by_itself(folder: Path) -> bool:
    """Whether a class of transformers may do otherwise than tokenizer.json says."""
    config = json_object(folder / CONFIG)
    plain = config.get("tokenizer_class") in AS_THE_FILE and "auto_map" not in config
    return not plain or (folder / "config.json").is_file()  # whose model_type may name a class


def _difference(ours: Tokenizer, theirs: Tokenizer, texts: list[str]) -> str | None:
    """The shortest text that two tokenizers give different ids."""
    for each in (ours, theirs):
        each.encode_special_tokens = True  # text stays text
        each.no_truncation()
        each.no_padding()
    pairs = zip(
        texts,
        ours.encode_batch_fast(texts, add_special_tokens=False),
        theirs.encode_batch_fast(texts, add_special_tokens=False),
        strict=True,
    )
    found = [text for text, one, two in pairs if one.ids != two.ids]
    return min(found, key=len)[:40] if found else None


def _about_begin(said: dict[str, Any], corpus: CorpusConfig) -> tuple[str, ...]:
    if not said["begins"] or corpus.prepend_bos or corpus.kind != "text":  # a chat template begins by itself
        return ()
    return (
        f"tokenizer {corpus.tokenizer.source}: transformers begins each text with {said['begins']}, "
        "documents here begin without; a model that is used to it wants prepend_bos: true",
    )


def _ask(folder: Path, name: str) -> dict[str, Any]:
    """What AutoTokenizer says, here if transformers is loaded anyway, or else in a process of its own."""
    if "transformers" in sys.modules:
        said = ask(folder)
    else:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*code_command(_CHILD), str(folder)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            timeout=_SECONDS,
        )
        if done.returncode:
            raise LlmtrainError(f"transformers can't be asked about tokenizer {name}: {done.stderr[-500:]}")
        said = json.loads(done.stdout.splitlines()[-1])
    if "refused" in said:
        raise DataError(
            f"tokenizer.source = {name!r}: transformers.AutoTokenizer can't read it ({said['refused']}), so "
            "its ids can't be proven right: save it anew with `save_pretrained`, or, if tokenizer.json alone "
            'is right, say "tokenizer_class": "PreTrainedTokenizerFast" in its tokenizer_config.json, and no '
            "auto_map"
        )
    return said


def ask(folder: Path) -> dict[str, Any]:
    """AutoTokenizer's class, its tokenizer as a tokenizer.json, and what it begins a text with; or `refused`.

    Nothing that the folder brings is run, and nothing is fetched.
    """
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # each of many kinds means the same to the user
        return {"refused": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}
    kind = type(found).__name__
    backend = getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return {"refused": f"its class {kind} is not one of the tokenizers library"}
    own = [found(text, add_special_tokens=False)["input_ids"] for text in ODD]
    if own != [backend.encode(text, add_special_tokens=False).ids for text in ODD]:
        return {"refused": f"its class {kind} does more than its tokenizer"}
    whole, bare = found("a")["input_ids"], found("a", add_special_tokens=False)["input_ids"]
    extra = whole[: len(whole) - len(bare)] if whole != bare and whole[-len(bare) :] == bare else []
    begins = "".join(map(str, found.convert_ids_to_tokens(extra)))
    return {"class": kind, "tokenizer": backend.to_str(), "begins": begins}


def answer() -> None:
    """The child process: prints what `ask` says of the folder that is its argument."""
    print(json.dumps(ask(Path(sys.argv[1]))))
