"""`llmtrain generate`: a model completes a prompt, piece by piece, with transformers' own cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llmtrain.errors import ConfigError, InputError, Problem
from llmtrain.evaluate import Subject, fill, find_subject, model_config, precision_of

MOST_NEW_TOKENS = 200  # unless asked for


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; `temperature` 0 takes the likeliest one.

    Without `max_new_tokens` the text ends by itself, after 200 tokens, or where the model's reach ends.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < 100:
            problems.append(Problem("--temperature", self.temperature, "command line", "must be 0 or more"))
        if not 0 < self.top_p <= 1:
            problems.append(Problem("--top-p", self.top_p, "command line", "must be above 0 and at most 1"))
        if problems:
            raise ConfigError(problems)


def generate(what: str, prompt: str, sampling: Sampling) -> Iterator[str]:
    """Yields the prompt, then the completion as it comes. Raises InputError when WHAT can't be used."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    subject = find_subject(what)
    tokenizer = _tokenizer(subject)
    inputs = tokenizer(prompt, return_tensors="pt")
    if inputs.input_ids.shape[1] == 0:  # an empty prompt: begin as a document begins, after the end of one
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        inputs = {"input_ids": torch.tensor([[start]]), "attention_mask": torch.tensor([[1]])}
    model = load_model(subject)
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    new_tokens = _new_tokens(model, inputs["input_ids"].shape[1], sampling.max_new_tokens)
    drawn: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if drawn["do_sample"]:
        drawn |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    torch.manual_seed(sampling.seed)
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(
                **inputs,
                **drawn,
                max_new_tokens=new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
                streamer=streamer,
            )
        except BaseException as error:  # noqa: BLE001 - it is raised again where it can be seen
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield prompt
    yield from streamer
    thread.join()
    if failure:
        raise failure[0]


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
        with suppress(OSError):  # it need not have one
            model.generation_config = transformers.GenerationConfig.from_pretrained(subject.name)
    return model.to(device).eval()


def _tokenizer(subject: Subject) -> Any:
    import transformers

    place = subject.checkpoint.path if subject.checkpoint else subject.name
    try:
        return transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{subject.name} has no tokenizer that transformers can read: {reason}") from error


def _new_tokens(model: Any, prompt_tokens: int, wanted: int | None) -> int:
    """How many tokens to add. Raises ConfigError when prompt and completion are more than the model reads."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = MOST_NEW_TOKENS if most is None else most - prompt_tokens
    if room < (wanted or 1):
        fix = f"the model reads at most {most} tokens and the prompt has {prompt_tokens}; "
        fix += f"use {room} or less" if room > 0 else "shorten the prompt"
        raise ConfigError(Problem("--max-new-tokens", wanted, "command line", fix))
    return wanted or min(room, MOST_NEW_TOKENS)
