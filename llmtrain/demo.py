"""`llmtrain demo`: the whole way on this machine, as the commands that anybody would type, one after another.

text of the standard library → dataset → training → evaluation → Hugging Face folder → text
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtrain.config.load import load_run
from llmtrain.config.search_path import code_command, module_command
from llmtrain.report.progress import duration

RECIPE, CORPUS = "demo.yaml", "stdlib.yaml"
PROMPT = "def read_file(path):\n"
# What a user of the exported folder writes: nothing of llmtrain is in it.
COMPLETE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed, utils
utils.logging.disable_progress_bar()
folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
set_seed(0)
inputs = tokenizer(prompt, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.5, top_p=0.9)
print(tokenizer.decode(out[0], skip_special_tokens=True))
"""


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
        print(f"\n$ a fresh process with transformers alone completes {PROMPT.strip()!r}\n", flush=True)
        _run([*code_command(COMPLETE), str(out), PROMPT])
    except subprocess.CalledProcessError as error:  # the command has said why
        return error.returncode if error.returncode in (2, 75, 130) else 1
    print(_closing(out, dataset, found, time.monotonic() - began))
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
    names = {"model": found, **found["baselines"]}
    for name, scores in names.items():
        print(f"{name:<10}  loss {scores['eval_loss']:.4f}, perplexity {scores['perplexity']:,.2f}")
    return found


def _closing(out: Path, dataset: str, found: dict[str, Any], seconds: float) -> str:
    rows = {"the trained model": found, "a unigram model": found["baselines"]["unigram"]}
    rows["the model untrained"] = found["baselines"]["untrained"]
    lines = ["", f"Done in {duration(seconds)}. The model is in {out} (a Hugging Face folder).", ""]
    lines.append(f"{'on held-out files of ' + dataset:<32}{'perplexity':>12}{'bits per byte':>16}")
    for name, scores in rows.items():
        lines.append(f"{name:<32}{scores['perplexity']:>12,.1f}{scores['bits_per_byte']:>16.3f}")
    following = {
        f'llmtrain generate {out} "import os"': "let it write on",
        "llmtrain plan recipes/125m.yaml --device h200": "what a real run would take",
        "llmtrain doctor": "what this machine can do",
    }
    width = max(map(len, following))
    lines += ["", "Next:", *(f"  {command:<{width}}  {what}" for command, what in following.items())]
    return "\n".join(lines)
