"""`llmtrain demo`: the whole way on this machine, as the commands that anybody would type, one after another.

text of the standard library → dataset → training → evaluation → Hugging Face folder → text
"""

from __future__ import annotations

import json
import lzma
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config.load import load_run
from llmtrain.config.schema import RunConfig
from llmtrain.config.search_path import code_command, module_command
from llmtrain.data.dataset import Dataset, open_dataset
from llmtrain.report.progress import duration

RECIPE, CORPUS = "demo.yaml", "stdlib.yaml"
PROMPTS = (
    "def read_file(path):\n",
    "    def __init__(self, name, value=None):\n",
    "class StackTest(unittest.TestCase):\n\n    def test_push(self):\n",
)
# What a user of the exported folder writes: nothing of llmtrain is in it.
COMPLETE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed, utils
utils.logging.disable_progress_bar()
folder, *prompts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
for number, prompt in enumerate(prompts, 1):
    set_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt")
    how = dict(do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.15)
    out = model.generate(**inputs, max_new_tokens=120, **how)
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    print(f"--- {number} of {len(prompts)}, given {prompt.strip()!r}\\n{text}\\n")
"""
NUMBERS = (
    "loss: nats per token, the mean over every token of files that training never saw; the losses of "
    "the steps above are of the text that was being learnt, one step's each. perplexity: e to the loss, "
    "so it depends on the tokenizer too. bits per byte: what the text would take if the model packed "
    "it; it compares with anything."
)


def demo(ranks: int, overrides: Sequence[str] = ()) -> int:
    """Runs the demo in the current folder. A second run goes on where the first one was stopped."""
    began = time.monotonic()
    run_file, corpus_file = f"recipes/{RECIPE}", f"recipes/{CORPUS}"  # here, or where llmtrain has put them
    run = load_run(run_file, overrides).config
    source, folder = run.data.eval[0], Path(run.folder)
    dataset, out = source.path, folder / "hf"
    try:
        _llmtrain("data", "build", corpus_file, f"output={dataset}")
        _llmtrain("train", run_file, *overrides, "--ranks", str(ranks))
        found = _scores(str(folder), dataset, source.split)
        shutil.rmtree(out, ignore_errors=True)  # of an earlier demo, perhaps of another step
        _llmtrain("export", str(folder), str(out))
        print("\n$ a fresh process with transformers alone completes three prompts\n", flush=True)
        _run([*code_command(COMPLETE), str(out), *PROMPTS])
    except subprocess.CalledProcessError as error:  # the command has said why
        return error.returncode if error.returncode in (2, 75, 130) else 1
    print(_closing(run, out, found, time.monotonic() - began))
    return 0


def _llmtrain(*words: str, capture: bool = False) -> str:
    print(f"\n$ llmtrain {' '.join(words)}", flush=True)
    return _run([*module_command("llmtrain"), *words], capture)


def _run(command: Sequence[str], capture: bool = False) -> str:
    """Runs a command to its end; returns what it printed when captured. Raises CalledProcessError."""
    with subprocess.Popen(command, stdout=subprocess.PIPE if capture else None, encoding="utf-8") as process:
        # Ctrl-C reaches the command by itself, which stops in its own time; SIGTERM is passed on
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        said, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return said or ""


def _scores(folder: str, dataset: str, split: str) -> dict[str, Any]:
    said = _llmtrain(
        "eval", folder, "--data", dataset, "--split", split, "--baselines", "--json", capture=True
    )
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def _closing(run: RunConfig, out: Path, found: dict[str, Any], seconds: float) -> str:
    dataset, split = run.data.eval[0].path, run.data.eval[0].split
    lines = [f"Done in {duration(seconds)}. The model is in {out} (a Hugging Face folder).", ""]
    lines.append(
        f"{'the held-out files of ' + dataset:<40}{'loss':>8}{'perplexity':>12}{'bits per byte':>16}"
    )
    scored = {
        "the trained model": found,
        "a unigram model (how often a token is)": found["baselines"]["unigram"],
        "the model untrained": found["baselines"]["untrained"],
    }
    for name, scores in scored.items():
        loss, perplexity, bits = (scores[key] for key in ("eval_loss", "perplexity", "bits_per_byte"))
        lines.append(f"{name:<40}{loss:>8.3f}{perplexity:>12,.1f}{bits:>16.3f}")
    alone = xz_bits_per_byte(texts_of(open_dataset(dataset, split)))
    lines.append(f"{'xz -9e, each file alone':<40}{'':>20}{alone:>16.3f}")
    lines += ["", *textwrap.wrap(NUMBERS, 100), "", "Next:"]
    following = {
        f'llmtrain generate {out} "import os"': "let it write on",
        f"llmtrain report {run.folder}": "what the run did, and what it cost",
        "llmtrain init FOLDER": "a corpus file and a run file for your own text",
        "llmtrain plan recipes/125m.yaml --device h200": "what a real run would take",
        "llmtrain doctor": "what this machine can do",
    }
    if shutil.which("llmtrain") is None:
        following = {
            f"source {Path(sys.prefix, 'bin', 'activate')}": "so that the shell finds llmtrain",
            **following,
        }
    width = max(map(len, following))
    return "\n".join([*lines, *(f"  {command:<{width}}  {what}" for command, what in following.items())])


def texts_of(dataset: Dataset) -> list[bytes]:
    """The documents of a split in UTF-8, read back from their tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(dataset.tokenizer_folder / "tokenizer.json"))
    tokens = np.concatenate([shard.tokens for shard in dataset.shards])
    parts = np.split(tokens, np.flatnonzero(tokens == dataset.eos_id))
    return [tokenizer.decode(part.tolist()).encode() for part in parts]


def xz_bits_per_byte(documents: Sequence[bytes], together: bool = False) -> float:
    """Bits per byte of `xz -9e`, each document in a file of its own, or all of them `together` in one."""
    texts = [b"".join(documents)] if together else [text for text in documents if text]
    packed = sum(len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) for text in texts)
    return 8 * packed / sum(map(len, texts))
