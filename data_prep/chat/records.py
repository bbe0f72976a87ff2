"""What a record of fine-tuning data says, whatever its columns are called: an `Exchange` or several.

    chat               messages [, tools]                 every assistant turn is learnt
    prompt_completion  prompt, completion [, tools]       the completion is learnt
    preference         [prompt,] chosen, rejected [, tools]

Prompts and answers are plain text, or lists of messages; without a prompt, a pair's is what both lists begin
with. A message is {role, content, …} as transformers has it, or ShareGPT's {from, value}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.chat.settings import FIELDS
from data_prep.chat.template import CLOSED, OPENED, Message
from data_prep.documents import RejectedError, look_up
from llmtrain.data.manifest import Kind

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "tool_response": "tool",
    "observation": "tool",
}
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing, the first is the usual one


@dataclass(frozen=True)
class Exchange:
    """What is read and what is learnt.

    Either `prompt` and `completion`, plain text; or `messages`, of which the assistant turns from `first` on
    are learnt.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Any, ...] = ()
    first: int = 0
    prompt: str = ""
    completion: str = ""

    @property
    def plain(self) -> bool:
        """True for plain text, which no template touches."""
        return not self.messages

    def strings(self) -> Iterator[str]:
        """Every text in it, tool schemas and the names of their fields included."""
        yield from _strings([*self.messages, *self.tools, self.prompt, self.completion])


def exchanges(row: Mapping[str, Any], kind: Kind, names: Mapping[str, str]) -> list[Exchange]:
    """One exchange, or for a preference the chosen and the rejected one. `names` are those of its columns.

    Raises RejectedError.
    """
    values = {field: look_up(row, names.get(field, field)) for field in FIELDS[kind]}
    for field, needed in FIELDS[kind].items():
        if needed and values[field] is None:
            raise RejectedError(f"no field '{names.get(field, field)}'")
    tools = _tools(values["tools"])
    if kind == "chat":
        return [Exchange(_messages(values["messages"]), tools)]
    if kind == "prompt_completion":
        return [_answered(values["prompt"], values["completion"], tools)]
    prompt, chosen, rejected = (values[field] for field in ("prompt", "chosen", "rejected"))
    if chosen == rejected:
        raise RejectedError("chosen and rejected are the same")
    if prompt is None:
        prompt, chosen, rejected = _common_start(chosen, rejected)
    return [_answered(prompt, chosen, tools), _answered(prompt, rejected, tools)]


def _answered(prompt: Any, answer: Any, tools: tuple[Any, ...]) -> Exchange:
    if isinstance(prompt, str) and isinstance(answer, str):
        if not answer:
            raise RejectedError("empty answer")
        return Exchange(prompt=prompt, completion=answer)
    if isinstance(prompt, str) or isinstance(answer, str):
        raise RejectedError("prompt and answer are not both text or both messages")
    asked = _messages(prompt)
    return Exchange((*asked, *_messages(answer)), tools, first=len(asked))


def _common_start(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise RejectedError("no field 'prompt'")
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    return chosen[:same], chosen[same:], rejected[same:]


def _messages(value: Any) -> tuple[Message, ...]:
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise RejectedError("messages are not a list")
    return tuple(_message(entry) for entry in value)


def _message(entry: Any) -> Message:
    """A message as templates expect it: no null values, reasoning under its usual name."""
    if not isinstance(entry, dict):
        raise RejectedError("a message is not an object")
    message = {key: value for key, value in entry.items() if value is not None}
    if "role" not in message and {"from", "value"} <= message.keys():
        speaker = message.pop("from")
        message = {"role": SHAREGPT.get(speaker, speaker), "content": message.pop("value"), **message}
    if message.get("role") not in ROLES:
        raise RejectedError("unknown role", repr(message.get("role"))[:40])
    if not isinstance(message.get("content", ""), str):
        raise RejectedError("content is not text")
    if "content" not in message and not message.get("tool_calls"):
        raise RejectedError("a message without content")
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _tools(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) and value.strip():  # tables keep what has no fixed shape as JSON text
        try:
            value = json.loads(value)
        except ValueError:
            raise RejectedError("tools are not a list of schemas") from None
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RejectedError("tools are not a list of schemas")
    return tuple(value)


def check_strings(exchange: Exchange, special: tuple[str, ...]) -> None:
    """Raises RejectedError for text that can't be encoded, or would become what only a template may write.

    A rendering is encoded whole, so one of the `special` tokens spelled out in a message would turn into that
    token: a forged end of turn. Plain text has no such danger; it is encoded as text.
    """
    for text in exchange.strings():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RejectedError("lone surrogate") from None
        if exchange.plain:
            continue
        if OPENED in text or CLOSED in text:
            raise RejectedError("private-use character in content")
        found = next((token for token in special if token in text), None)
        if found is not None:
            raise RejectedError("special token in content", found)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
