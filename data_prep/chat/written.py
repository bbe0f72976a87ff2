"""Whether a chat template writes what a conversation says, and in which shape it wants a tool call.

A template may pass over a message, or a call, without a word: a role that it does not know, a call beside
content. What it does not write can't be learnt, and an answer to what is not there is learnt wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.chat.messages import ASSISTANT
from data_prep.chat.records import Exchange
from data_prep.chat.template import ChatTemplate, Message
from data_prep.documents import RejectedError

NO_CALLS = "the chat template writes no tool calls"
LEFT_OUT = "the chat template leaves out a message"
ABSENT, EMPTY, NULL = "absent", "", None  # the content of a message that is nothing but calls


@dataclass(frozen=True)
class CallShape:
    """How a template wants the calls of a message without content: the `contents` with which it writes them,
    and whether arguments are JSON text, which it writes as it stands. Most write an object by themselves, and
    would quote a text once more."""

    contents: tuple[str | None, ...]
    as_text: bool

    @classmethod
    def of(cls, template: ChatTemplate, tools: Sequence[Any] | None) -> CallShape:
        """Finds it by trying. Without `contents` the template writes no call."""
        for as_text in (False, True):
            contents = tuple(
                content
                for content in (ABSENT, EMPTY, NULL)
                if _is_written(template, tools, _call_of({"place": "Paris"}, content, as_text), as_text)
            )
            if contents:
                return cls(contents, as_text)
        return cls((), False)

    def apply(self, message: Message) -> Message:
        """A message in this shape; one without calls as it is."""
        if "tool_calls" not in message:
            return message
        given = message.get("content", ABSENT)
        if given in (ABSENT, EMPTY) and given not in self.contents:
            message = _with_content(message, self.contents[0])
        if not self.as_text:
            return message
        functions = (call["function"] for call in message["tool_calls"])
        texts = [{**each, "arguments": _dumped(each["arguments"])} for each in functions]
        calls = zip(message["tool_calls"], texts, strict=True)
        return {**message, "tool_calls": [{**call, "function": function} for call, function in calls]}


def _call_of(arguments: Any, content: str | None, as_text: bool) -> Message:
    function = {"name": "look_up", "arguments": _dumped(arguments) if as_text else arguments}
    calls = [{"type": "function", "id": "call00001", "function": function}]
    return _with_content({"role": ASSISTANT, "tool_calls": calls}, content)


def _with_content(message: Message, content: str | None) -> Message:
    rest = {key: value for key, value in message.items() if key != "content"}
    return rest if content == ABSENT else {"role": rest["role"], "content": content, **rest}


def _dumped(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _is_written(template: ChatTemplate, tools: Sequence[Any] | None, call: Message, as_text: bool) -> bool:
    try:
        text = template.text([{"role": "user", "content": "Where am I?"}, call], tools)
    except RejectedError:
        return False
    if "look_up" not in text or "None" in text:
        return False
    return '{"place": "Paris"}' in text if as_text else "Paris" in text and "{'place'" not in text


def check_written(template: ChatTemplate, exchange: Exchange) -> None:
    """Raises RejectedError when the template leaves out a message or a call.

    Every content and every function gets a name of its own, and each must be in what is written. Content
    beside a call may be left out: it is reasoning to some templates.
    """
    marks: list[tuple[str, str]] = []
    messages = []
    for place, message in enumerate(exchange.messages):
        marked = dict(message)
        if message.get("content") and "tool_calls" not in message:
            marked["content"] = f"content{place}of{place}"
            marks.append((LEFT_OUT, marked["content"]))
        if "tool_calls" in message:
            marked["tool_calls"] = list(_renamed(message["tool_calls"], place))
            marks += [(NO_CALLS, call["function"]["name"]) for call in marked["tool_calls"]]
        messages.append(marked)
    try:
        text = template.text(messages, exchange.tools)
    except RejectedError:  # it looks at what is said, so nothing can be tried
        return
    missing = next((found for found in marks if found[1] not in text), None)
    if missing is not None:
        number = next(k for k, each in enumerate(messages) if missing[1] in str(each))
        raise RejectedError(missing[0], f"of role {messages[number]['role']!r}")


def _renamed(calls: Sequence[Any], place: int) -> Iterator[Any]:
    for number, call in enumerate(calls):
        yield {**call, "function": {**call["function"], "name": f"name{number}of{place}"}}


def pattern_of(exchange: Exchange) -> tuple[Any, ...]:
    """All of an exchange that decides whether a template writes its messages, in practice."""
    each = ((m["role"], bool(m.get("content")), len(m.get("tool_calls", ()))) for m in exchange.messages)
    return (bool(exchange.tools), *each)


def shaped(exchange: Exchange, shape: CallShape) -> Exchange:
    """The exchange with its calls in a template's shape. Raises RejectedError when it writes none."""
    if not shape.contents:
        raise RejectedError(NO_CALLS)
    return replace(exchange, messages=tuple(map(shape.apply, exchange.messages)))
