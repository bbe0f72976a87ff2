"""The one opener of a trained model: a run, a checkpoint, or a model as transformers keeps it.

`evaluate`, `generate` and `export` ask here what WHAT means, and get its configuration, its tokenizer, its
weights, and where generation by it stops.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.config.hub_names import looks_like_a_path
from llmtrain.config.hub_reach import settle_reach
from llmtrain.config.load import load_run
from llmtrain.config.schema import RunConfig
from llmtrain.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import torch

    from llmtrain.checkpoint import Checkpoint


@dataclass(frozen=True)
class Subject:
    """What WHAT turned out to be: a checkpoint of ours, or a model that transformers loads by name."""

    name: str
    checkpoint: Checkpoint | None
    run: RunConfig | None  # of the checkpoint


def find_subject(what: str) -> Subject:
    """A run folder's newest checkpoint, a checkpoint, or a Hugging Face folder or Hub id.

    Raises CheckpointError when it is none of them, or damaged. No path is asked of the Hub.
    """
    from llmtrain.checkpoint import open_checkpoint
    from llmtrain.checkpoint.load import nothing_at

    path = Path(what).expanduser()
    if not path.exists():
        if looks_like_a_path(what):
            raise nothing_at(what)
        settle_reach()
        return Subject(what, None, None)
    if is_model_folder(path):
        return Subject(str(path), None, None)
    if not any((path / name).exists() for name in ("checkpoints", "COMMIT")) and not any(path.glob("rank-*")):
        raise CheckpointError(f"{what} is neither a run folder, nor a checkpoint, nor a Hugging Face folder")
    checkpoint = open_checkpoint(path, lambda path, why: print(f"passed over {path}: {why}", file=sys.stderr))
    return Subject(str(checkpoint.path), checkpoint, load_run(checkpoint.path / "run.yaml").config)


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a model as transformers saves it."""
    weights = any(path.glob("*.safetensors")) and not any(path.glob("rank-*.safetensors"))
    return weights and (path / "config.json").is_file()


def model_config(subject: Subject) -> Any:
    """The transformers configuration. Raises InputError when there is none that it knows."""
    from llmtrain.model.configuration import read_config, text_model

    try:
        config = config_of(subject.checkpoint) if subject.checkpoint else read_config(subject.name)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{subject.name} is no model that transformers can read: {reason}") from error
    try:
        return config if subject.checkpoint else text_model(config)
    except ValueError as error:
        raise InputError(f"{subject.name} can't be evaluated or completed: {error}") from error


def config_of(checkpoint: Checkpoint) -> Any:
    """A checkpoint's configuration, with the length it was trained on where that is more than it said.

    Raises what transformers raises. Where the length decides the rotary frequencies it stays as it was.
    """
    from llmtrain.model.configuration import read_config

    config = read_config(checkpoint.path, local_files_only=True)
    text, length = config.get_text_config(), checkpoint.manifest.identity.seq_len
    reach = reach_of(config)
    if reach is not None and reach < length and _reach_is_free(text):
        text.max_position_embeddings = length
    return config


def reach_of(config: Any) -> int | None:
    """How many tokens a model reads; None when its configuration sets no bound."""
    reach = getattr(config.get_text_config(), "max_position_embeddings", None)
    return reach if isinstance(reach, int) and reach > 0 else None


def _reach_is_free(text: Any) -> bool:
    """Whether max_position_embeddings says no more than how far a model was trained."""
    rotary = getattr(text, "rope_parameters", None)
    if not isinstance(rotary, dict):
        return False  # positions that are learnt, each a row of weights
    kinds = [each for each in rotary.values() if isinstance(each, dict)]  # one for each kind of layer
    kinds = kinds or [rotary]
    fixed = {"factor", "original_max_position_embeddings"}
    return all(
        kind.get("rope_type", "default") in ("default", "linear", "llama3")
        or (kind.get("rope_type") == "yarn" and fixed <= kind.keys())
        for kind in kinds
    )


def load_tokenizer(subject: Subject) -> Any:
    """The tokenizer as transformers loads it. Raises InputError when there is none."""
    import transformers

    place = subject.checkpoint.path if subject.checkpoint else subject.name
    try:
        return transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{subject.name} has no tokenizer that transformers can read: {reason}") from error


def load_model(subject: Subject) -> Any:
    """The transformers model, as its users get it, in the dtype it was trained or saved in."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    from llmtrain.engine import detect_device
    from llmtrain.model.weights import WeightFiles

    config = model_config(subject)
    device = detect_device()
    precision = subject.run.precision if subject.run else precision_of(config)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    config.use_cache = True
    with no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    if subject.checkpoint is not None:
        fill(model.state_dict(keep_vars=True), subject.checkpoint)
    else:  # not from_pretrained: an index of weights, or an adapter, may lead it out of the folder
        WeightFiles(subject.name).fill_for(model)("", model, True)
    return model.to(device).eval()


def generation_of(subject: Subject, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Where generation stops, and how it samples: `generation_config.json` with what it lacks."""
    from llmtrain.model.generation import completed

    if subject.checkpoint is not None:
        return completed(settings_of(subject.checkpoint), model.config, tokenizer)
    import transformers

    try:
        said = transformers.GenerationConfig.from_pretrained(subject.name).to_dict()
    except OSError:  # it need not have one: then transformers goes by the model's configuration
        said = model.generation_config.to_dict()
    return completed(said, model.config, tokenizer)


def settings_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """A checkpoint's generation_config.json, if its manifest vouches for one: an older version wrote none."""
    from llmtrain.checkpoint.files import read_plain
    from llmtrain.checkpoint.manifest import GENERATION

    if GENERATION not in {entry.name for entry in checkpoint.manifest.files}:
        return None
    content: dict[str, Any] = json.loads(read_plain(checkpoint.path, GENERATION))
    return content


def precision_of(config: Any) -> str:
    """bf16, fp16 or fp32, as a Hugging Face configuration names its dtype."""
    name = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return {"bfloat16": "bf16", "float16": "fp16"}.get(name, "fp32")


def fill(tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    """Copies the checkpoint's weights and buffers into tensors under their canonical names.

    A tied weight has two names and lies in the checkpoint under one. Raises CheckpointError naming what the
    checkpoint lacks.
    """
    import torch

    filled = set()
    with torch.no_grad(), checkpoint.reader() as reader:
        for name, tensor in tensors.items():
            kinds = reader.kinds(name)
            if kinds:
                tensor.copy_(reader.tensor(name, kinds[0]))
                filled.add(tensor.data_ptr())
    missing = [name for name, tensor in tensors.items() if tensor.data_ptr() not in filled]
    if missing:
        raise CheckpointError(f"{checkpoint.path} has no values for {', '.join(missing[:3])}")
