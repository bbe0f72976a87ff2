"""`llmtrain generate`: a model completes a prompt, piece by piece, with transformers' own cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmtrain.errors import ConfigError, Problem
from llmtrain.trained import find_subject, generation_of, load_model, load_tokenizer, reach_of

MOST_NEW_TOKENS = 200  # unless asked for
# What counts of a model's own settings; how the next token is drawn, the command line says.
_KEPT = {"bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size"}
_KEPT |= {"suppress_tokens", "bad_words_ids"}


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


def generate(what: str, prompt: str, sampling: Sampling, chat: bool = False) -> Iterator[str]:
    """Yields the prompt, then the completion as it comes; with `chat`, the answer to it as a user's message.

    Generation ends where the model's own settings say. Raises InputError when WHAT can't be used.
    """
    import torch
    import transformers

    from llmtrain.model.generation import token_ids

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    subject = find_subject(what)
    tokenizer = load_tokenizer(subject)
    asked = _asked(tokenizer, prompt, subject.name) if chat else tokenizer(prompt).input_ids
    model = load_model(subject)
    settings = {k: v for k, v in generation_of(subject, model, tokenizer).items() if k in _KEPT}
    # an empty prompt: begin as a document begins, after the end of one
    asked = asked or token_ids(settings.get("bos_token_id")) or token_ids(settings.get("eos_token_id"))[-1:]
    inputs = torch.tensor([asked], device=model.device)
    settings["max_new_tokens"] = _new_tokens(model, len(asked), sampling.max_new_tokens)
    settings["do_sample"] = sampling.temperature > 0
    if sampling.temperature > 0:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    model.generation_config = transformers.GenerationConfig(**settings)
    torch.manual_seed(sampling.seed)
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    yield from ([] if chat else [prompt])
    yield from _streamed(model, inputs, streamer)


def _asked(tokenizer: Any, prompt: str, name: str) -> list[int]:
    """The ids of a conversation that begins with this message, up to where the answer begins."""
    if not tokenizer.chat_template:
        fix = f"{name} has no chat template: leave --chat out, and it goes on with the text"
        raise ConfigError(Problem("--chat", True, "command line", fix))
    messages = [{"role": "user", "content": prompt}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


def _streamed(model: Any, inputs: Any, streamer: Any) -> Iterator[str]:
    """Pieces of text as a thread generates them; what ends the thread is raised here."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(inputs, attention_mask=inputs.new_ones(inputs.shape), streamer=streamer)
        except BaseException as error:  # noqa: BLE001 - it is raised again where it can be seen
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failure:
        raise failure[0]


def _new_tokens(model: Any, prompt_tokens: int, wanted: int | None) -> int:
    """How many tokens to add. Raises ConfigError when prompt and completion are more than the model reads."""
    most = reach_of(model.config)
    room = MOST_NEW_TOKENS if most is None else most - prompt_tokens
    if room < (wanted or 1):
        fix = f"the model reads at most {most} tokens and the prompt has {prompt_tokens}; "
        fix += f"use {room} or less" if room > 0 else "shorten the prompt"
        raise ConfigError(Problem("--max-new-tokens", wanted, "command line", fix))
    return wanted or min(room, MOST_NEW_TOKENS)
