"""`llmtrain export`: checkpoint → Hugging Face folder, streamed, reloaded and compared before it counts.

It needs no GPU and no other ranks. The folder appears under its name only after a fresh process has
loaded it with transformers alone and got the loss that the engine recorded in the checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmtrain.checkpoint import Checkpoint, Probe
from llmtrain.checkpoint.facts import config_text
from llmtrain.checkpoint.files import sync_folder, write_file
from llmtrain.checkpoint.load import open_checkpoint
from llmtrain.checkpoint.manifest import GENERATION
from llmtrain.config.search_path import module_command
from llmtrain.errors import CheckpointError, ConfigError, Problem, nearest
from llmtrain.export.card import model_card
from llmtrain.export.push import check_destination, push_folder
from llmtrain.export.tokenizer import write_tokenizer
from llmtrain.export.weights import PUBLIC_FILE, SHARD_BYTES, lay_out, write_weights
from llmtrain.model.generation import completed, first_or_all, token_ids
from llmtrain.trained import config_of, is_model_folder, reach_of, settings_of

_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
PUBLIC_FOLDER = 0o755
# How far the reloaded model's loss may be from the engine's, relative: the rounding of one forward pass in
# other kernels, on another device. A misplaced or transposed tensor of a trained model is far beyond it.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Exported:
    """A finished export: where it is, and the two losses that agree."""

    path: Path
    step: int
    dtype: str
    recorded_loss: float
    reloaded_loss: float
    url: str | None  # on the Hub, when it was pushed


def export(
    what: Path,
    out: Path,
    push: str | None = None,
    dtype: str = "auto",
    *,
    private: bool = True,
    shard_bytes: int = SHARD_BYTES,
    on_reject: Callable[[Path, str], None] | None = None,
) -> Exported:
    """Writes WHAT (a run folder's newest checkpoint, or a checkpoint) as a Hugging Face folder at `out`.

    `dtype`: auto (the run's precision), bf16, fp16 or fp32. `push`: a Hub name to upload it to, into a
    new private repository unless `private` is off. Raises ConfigError for a wrong argument,
    CheckpointError when the checkpoint is damaged or the export does not give the recorded loss; then
    there is nothing at `out`.
    """
    out = Path(out)
    _check_arguments(out, push, dtype)
    if is_model_folder(Path(what)):
        raise CheckpointError(
            f"{what} is a Hugging Face folder already: an export is made of a run or a checkpoint"
        )
    checkpoint = open_checkpoint(Path(what), on_reject)
    probe = checkpoint.manifest.probe
    if probe is None:
        raise CheckpointError(f"{checkpoint.path} has no probe, so an export of it could not be checked")
    trained = _DTYPES[checkpoint.manifest.topology.precision]
    written = trained if dtype == "auto" else _DTYPES[dtype]
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    _clear_left(out.absolute())
    part = out.absolute().with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    part.mkdir(PUBLIC_FOLDER)
    try:
        _write(checkpoint, part, push or out.name, written, shard_bytes)
        loss = _reloaded_loss(part, probe)
        tolerance = max(_TOLERANCE[trained], _TOLERANCE[written])
        _compare(checkpoint.path, probe.loss, loss, tolerance)
        sync_folder(part)
        os.rename(part, out)  # replaces an empty folder, and fails on any other
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    url = push_folder(out, push, f"llmtrain export of step {checkpoint.step}", private) if push else None
    return Exported(out, checkpoint.step, _name(written), probe.loss, loss, url)


def _clear_left(out: Path) -> None:
    """Takes away what exports to `out` that were killed on this machine have left half-written."""
    for left in out.parent.glob(f".{out.name}.*-*.part"):
        pid = left.name.removeprefix(f".{out.name}.").partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)


def _check_arguments(out: Path, push: str | None, dtype: str) -> None:
    problems = []
    if dtype != "auto" and dtype not in _DTYPES:
        fix = f"one of auto, bf16, fp16, fp32; {nearest(dtype, _DTYPES)}".rstrip("; ")
        problems.append(Problem("dtype", dtype, "--dtype", fix))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        fix = "it is already there: give a new folder, or remove this one first"
        problems.append(Problem("out", str(out), "command line", fix))
    if problems:
        raise ConfigError(problems)
    if push:
        check_destination(push)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write(checkpoint: Checkpoint, folder: Path, name: str, dtype: torch.dtype, shard_bytes: int) -> None:
    """Everything of the export, into an empty folder."""
    model = _hollow_model(checkpoint, dtype)
    with checkpoint.reader() as reader:
        layout = lay_out(model, reader, dtype)
        write_weights(model, reader, layout, folder, shard_bytes)
    tokenizer = write_tokenizer(checkpoint, folder, reach_of(model.config))
    _write_settings(checkpoint, model, tokenizer, folder)
    card = model_card(checkpoint, name, model.num_parameters(), _name(dtype))
    write_file(folder / "README.md", card.encode(), PUBLIC_FILE)
    for path in folder.rglob("*"):  # transformers' files, and folders, have the umask's modes
        path.chmod(path.stat().st_mode & (PUBLIC_FOLDER if path.is_dir() else PUBLIC_FILE))


def _hollow_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The transformers model of the checkpoint's config, on the meta device: all names, no values."""
    import transformers

    try:
        config = config_of(checkpoint)
        config.use_cache = True  # training turns it off; generation is slow without it
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint.path} has a config.json that transformers refuses: {error}"
        ) from None
    model.config.dtype = _name(dtype)
    model.config.architectures = [type(model).__name__]
    return model


def _write_settings(checkpoint: Checkpoint, model: Any, tokenizer: Any, folder: Path) -> None:
    """config.json and generation_config.json, which say where generation stops: servers read either."""
    from transformers import __version__

    said = settings_of(checkpoint)
    if tokenizer is not None:
        settings = completed(said, model.config, tokenizer)
    else:  # nobody knows better than the config, or than the run did
        settings = said or {"eos_token_id": model.config.get_text_config().eos_token_id}
    ends = token_ids(settings.get("eos_token_id"))
    for target in (model.config.get_text_config(), model.config):
        if ends:
            _set_ends(target, ends)
        if tokenizer is not None and hasattr(target, "bos_token_id"):
            target.bos_token_id = settings.get("bos_token_id")
    model.config.save_pretrained(folder)
    if model.can_generate():
        content = {**settings, "transformers_version": __version__}
        write_file(folder / GENERATION, config_text(content).encode(), PUBLIC_FILE)


def _set_ends(config: Any, ends: list[int]) -> None:
    """All of them where the family's config may have several, else the last."""
    try:
        config.eos_token_id = first_or_all(ends)
        type(config).from_dict(config.to_dict())
    except Exception:  # noqa: BLE001 - each version has its own error for a value of another type
        config.eos_token_id = ends[-1]


def _reloaded_loss(folder: Path, probe: Probe) -> float:
    """The loss that a fresh process gets from the folder, without network and without a GPU."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*module_command("llmtrain.checkpoint.probe"), str(folder)],
        input=probe.model_dump_json(),
        capture_output=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    if done.returncode:
        cause = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise CheckpointError(f"the export could not be loaded with transformers, so it was removed: {cause}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["wrong"]:
        raise CheckpointError(
            f"transformers does not take the export as it is, so it was removed: {answer['wrong']}"
        )
    return float(answer["loss"])


def _compare(source: Path, recorded: float, reloaded: float, tolerance: float) -> None:
    if not math.isfinite(reloaded) or not abs(reloaded - recorded) <= tolerance * max(1.0, abs(recorded)):
        raise CheckpointError(
            f"the export of {source} is not the model that was trained, so it was removed: reloaded it has "
            f"a loss of {reloaded:.6f} on the probe rows, training recorded {recorded:.6f} (allowed: "
            f"{tolerance:g} relative)"
        )
