"""Chat templates in the shapes of well-known families, tokenizers that go with them, and the same renderings
written by hand: each is a list of (text, whether a model is to write it)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

Pieces = list[tuple[str, bool]]

CHATML = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{%- endif %}
{%- if tools %}{{- '<|im_start|>system\\nTools:' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' and loop.first %}{%- continue %}{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}{{- '<call>' + (call.function | tojson) + '</call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

TURNS = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

# Earlier reasoning is stripped, and the last answer always begins with a place for it.
REASONING = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' and loop.index0 > ns.last %}
{{- '<|im_start|>assistant\\n<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
{{- message.content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

MARKED = """\
{%- macro turn(message) -%}
{%- if message.role == 'assistant' -%}
<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}{% else -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif -%}
{%- endmacro -%}
{%- for message in messages -%}{{ turn(message) }}{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""

# Every text ends with the end mark, whatever comes last in it.
CLOSED = """\
{%- for message in messages %}{{- '<|' + message.role + '|>' + message.content + '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- else %}{{- eos_token }}{%- endif %}
"""

SENTENCES = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- else -%}{{ ' ' + message.content + eos_token }}{%- endif -%}
{%- endfor -%}
"""


@dataclass(frozen=True)
class Family:
    """A template, the special tokens it writes, and its rendering by hand."""

    template: str
    special: tuple[str, ...]
    by_hand: Callable[[list[dict[str, Any]]], Pieces]
    system: bool = True  # knows a system turn


def _chatml(messages: list[dict[str, Any]]) -> Pieces:
    system = "" if messages[0]["role"] == "system" else "<|im_start|>system\nBe brief.<|im_end|>\n"
    return [(system, False), *_im(messages)]


def _im(messages: list[dict[str, Any]]) -> Pieces:
    return [
        piece
        for message in messages
        for piece in (
            (f"<|im_start|>{message['role']}\n", False),
            (message["content"] + "<|im_end|>", message["role"] == "assistant"),
            ("\n", False),
        )
    ]


def _headers(messages: list[dict[str, Any]]) -> Pieces:
    pieces: Pieces = [("<|begin_of_text|>", False)]
    for message in messages:
        pieces.append((f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", False))
        pieces.append((message["content"].strip() + "<|eot_id|>", message["role"] == "assistant"))
    return pieces


def _turns(messages: list[dict[str, Any]]) -> Pieces:
    pieces: Pieces = [("<bos>", False)]
    for message in messages:
        answers = message["role"] == "assistant"
        pieces.append((f"<start_of_turn>{'model' if answers else 'user'}\n", False))
        pieces += [(message["content"].strip() + "<end_of_turn>", answers), ("\n", False)]
    return pieces


def _closed(messages: list[dict[str, Any]]) -> Pieces:
    pieces: Pieces = []
    for number, message in enumerate(messages, 1):
        end = "<|end|></s>" if number == len(messages) else "<|end|>"
        pieces.append((f"<|{message['role']}|>", False))
        pieces.append((message["content"] + end, message["role"] == "assistant"))
    return pieces


FAMILIES = {
    "chatml": Family(CHATML, ("<|im_start|>", "<|im_end|>"), _chatml),
    "headers": Family(
        HEADERS, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), _headers
    ),
    "turns": Family(TURNS, ("<bos>", "<start_of_turn>", "<end_of_turn>"), _turns, system=False),
    "closed": Family(CLOSED, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), _closed),
    "marked": Family(MARKED, ("<|im_start|>", "<|im_end|>"), _im),
}

TRAINING_TEXT = [
    "How many legs has a spider? Eight.  And a fly? Six, and two wings.\n\nBe brief.",
    "system user assistant model tool think \n\n  \t {'name': \"add\", 'x': 12}",
    "naïve Straße 数据 🙂 e\u0301 \u202e \r\n",
]


@functools.cache
def trained(special: tuple[str, ...], kind: str) -> str:
    """A tokenizer.json: byte-level BPE as GPT-2's, or with byte fallback as SentencePiece's."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet, extra = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet, extra = [], ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=extra, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT * 3, trainer)
    if extra:  # bytes are plain pieces of the vocabulary, not tokens that a text could spell out
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == "<unk>"]
        tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return str(tokenizer.to_str())


def chat_folder(
    folder: Path, template: str, special: tuple[str, ...], kind: str = "bytes", in_config: bool = False
) -> Path:
    """A tokenizer folder with this chat template, in its own file or in tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(trained((*special, "</s>"), kind), encoding="utf-8")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    config["clean_up_tokenization_spaces"] = False
    if special[0] in ("<bos>", "<|begin_of_text|>"):
        config["bos_token"] = special[0]
    if in_config:
        config["chat_template"] = template
    else:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
