"""Messages in the one shape that chat templates read, whichever tool wrote them.

    role, content      OpenAI, transformers          from, value      ShareGPT
    tool_calls         OpenAI; function_call, by its key (OpenAI's older form) or by its role (ShareGPT)
    reasoning_content  or thinking, or reasoning
    weight             0: the turn is read and not learnt; so too loss_weight, train, training, loss and
                       loss_mask, and the other way round masked

What else a message holds goes along to the template. Content is text, or a list of parts that are all text,
which are joined as they stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.chat.template import Message
from data_prep.chat.tools import calls_of, from_json
from data_prep.documents import RejectedError

CALL = "call"  # in place of a role: the assistant calls a tool, and the content is the call
SYSTEM = ("system", "developer")
ASSISTANT = "assistant"
ROLES = {
    **{role: role for role in (*SYSTEM, "user", ASSISTANT, "tool")},
    "human": "user",
    **dict.fromkeys(("gpt", "model", "bot", "chatbot", "chatgpt", "bard", "bing"), ASSISTANT),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
    **dict.fromkeys(
        ("function", "observation", "tool_response", "function_response", "tool_result", "ipython"), "tool"
    ),
}
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing, the first is the usual one
TEXT_PARTS = ("text", "input_text", "output_text")
LEARNT = {
    **dict.fromkeys(("weight", "loss_weight", "train", "training", "loss", "loss_mask"), True),
    "masked": False,
}
# Keys that say something about the loss or the content which can't be honoured, or may mean its contrary.
REFUSED = (
    *("mask", "loss_scale", "train_detail", "training_detail"),
    *("image", "images", "audio", "audios", "video", "videos"),
)


@dataclass(frozen=True)
class Turns:
    """The messages of a conversation; `unlearnt` are the places of those that are read and not learnt.

    `bare`: they are of a format whose tool schemas have no envelope.
    """

    messages: tuple[Message, ...]
    unlearnt: frozenset[int] = frozenset()
    bare: bool = False

    def __add__(self, other: Turns) -> Turns:
        moved = {len(self.messages) + place for place in other.unlearnt}
        messages = (*self.messages, *other.messages)
        return Turns(messages, self.unlearnt | moved, self.bare or other.bare)

    def under(self, system: Any) -> Turns:
        """With this system text in front, if there is one. Raises RejectedError when they have another."""
        if system is None or system == "":
            return self
        if not isinstance(system, str):
            raise RejectedError("system is not text")
        first = self.messages[0]
        if first["role"] in SYSTEM:
            if first.get("content") != system:
                raise RejectedError("two system texts")
            return self
        return Turns(({"role": "system", "content": system},), bare=self.bare) + self


def turns_of(value: Any) -> Turns:
    """A list of messages, one message alone, or either as JSON text. Raises RejectedError."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = from_json(value, "messages are not a list")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise RejectedError("messages are not a list")
    messages, unlearnt, bare = [], set(), False
    for place, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise RejectedError("a message is not an object")
        given = {key: inner for key, inner in entry.items() if inner is not None}
        bare = bare or "function_call" in given or ("role" not in given and "from" in given)
        learnt = _learnt(given)
        message = _message(given)
        if learnt and message["role"] != ASSISTANT:
            raise RejectedError("a turn that is not the assistant's is to be learnt", message["role"])
        if learnt is False:
            unlearnt.add(place)
        messages.append(message)
    return Turns(tuple(messages), frozenset(unlearnt), bare)


def _learnt(message: dict[str, Any]) -> bool | None:
    """Whether a message says that it is to be learnt; None: it says nothing. Takes the keys out of it."""
    said = set()
    for key in LEARNT.keys() & message.keys():
        value = message.pop(key)
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RejectedError("a message's weight is neither 0 nor 1", f"{key}: {value!r}"[:40])
        said.add(bool(value) == LEARNT[key])
    if len(said) > 1:
        raise RejectedError("a message is to be learnt and not to be learnt")
    return said.pop() if said else None


def _message(given: dict[str, Any]) -> Message:
    """A message without null values as templates expect it, its reasoning under the usual names."""
    for key in REFUSED:
        if key in given and given[key] not in ([], ""):
            raise RejectedError(f"a message's '{key}' can't be honoured")
    if "role" not in given and "from" in given:
        given = {"role": given.pop("from"), "content": given.pop("value", None), **given}
    name = given.get("role")
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise RejectedError("unknown role", repr(name)[:40])
    message = {key: value for key, value in given.items() if value is not None}
    message["role"] = role
    calls = message.pop("tool_calls", None) or message.pop("function_call", None)
    if role == CALL:
        calls = message.get("content")
        message |= {"role": ASSISTANT, "content": ""}
    if calls:
        message["tool_calls"] = calls_of(calls)
    elif role == CALL or "content" not in message:
        raise RejectedError("a message without content")
    if "content" in message:
        message["content"] = _text(message["content"])
    return _with_reasoning(message)


def _with_reasoning(message: Message) -> Message:
    found = next((message[name] for name in REASONING if name in message), None)
    if found is None:
        return message
    if not isinstance(found, str):
        raise RejectedError("reasoning is not text")
    return {"thinking": found, **message, "reasoning_content": found}


def _text(content: Any) -> str:
    """Content that is text, or parts that are."""
    return content if isinstance(content, str) else "".join(_parts(content))


def _parts(content: Any) -> Iterator[str]:
    if not isinstance(content, list):
        raise RejectedError("content is not text", type(content).__name__)
    for part in content:
        if isinstance(part, str):
            yield part
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) and kind in TEXT_PARTS else None
        if not isinstance(text, str):
            raise RejectedError("content is not text", f"a part of type {kind!r}"[:60])
        yield text
