"""What a record of fine-tuning data says, whatever its columns are called: an `Exchange` or several.

    chat               messages [, system, tools]                 every assistant turn is learnt
    prompt_completion  prompt, completion [, system, tools]       the completion is learnt
    preference         [prompt,] chosen, rejected [, system, tools]

Prompts and answers are plain text, or lists of messages (`data_prep.chat.messages`); without a prompt, a
pair's is what both lists begin with. A prompt of several columns is their texts, joined by blank lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.chat.messages import Turns, turns_of
from data_prep.chat.settings import FIELDS
from data_prep.chat.template import CLOSED, OPENED, Message
from data_prep.chat.tools import schemas_of
from data_prep.documents import RejectedError, look_up
from llmtrain.data.manifest import Kind

Names = Mapping[str, str | tuple[str, ...]]  # field → its column, or the columns whose texts it is


@dataclass(frozen=True)
class Exchange:
    """What is read and what is learnt.

    Either `prompt` and `completion`, plain text; or `messages`, of which the assistant turns from `first` on
    are learnt, but for those in the places `unlearnt`.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Any, ...] = ()
    first: int = 0
    unlearnt: frozenset[int] = frozenset()
    prompt: str = ""
    completion: str = ""

    @property
    def plain(self) -> bool:
        """True for plain text, which no template touches."""
        return not self.messages

    def strings(self) -> Iterator[str]:
        """Every text in it, tool schemas and the names of their fields included."""
        yield from _strings([*self.messages, *self.tools, self.prompt, self.completion])


@dataclass(frozen=True)
class _Context:
    """What goes along with the messages of a record; `chat`: plain text becomes messages too."""

    system: Any
    tools: Any
    chat: bool

    def exchange(self, turns: Turns, first: int = 0) -> Exchange:
        """Messages, all in order, the answers from `first` on."""
        whole = turns.under(self.system)
        first += len(whole.messages) - len(turns.messages) if first else 0
        return Exchange(whole.messages, schemas_of(self.tools, whole.bare), first, whole.unlearnt)

    def answered(self, prompt: Any, answer: Any) -> Exchange:
        """A prompt and its answer, both text or both messages."""
        if isinstance(prompt, str) and isinstance(answer, str):
            if not answer:
                raise RejectedError("empty answer")
            if self.chat:
                said = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
                return self.exchange(Turns(said), first=1)
            if self.system or schemas_of(self.tools, bare=False):
                raise RejectedError("a system text or tools, and no chat template is applied")
            return Exchange(prompt=prompt, completion=answer)
        if isinstance(prompt, str) or isinstance(answer, str):
            raise RejectedError("prompt and answer are not both text or both messages")
        asked = turns_of(prompt)
        return self.exchange(asked + turns_of(answer), first=len(asked.messages))


def exchanges(row: Mapping[str, Any], kind: Kind, names: Names, chat: bool = False) -> list[Exchange]:
    """One exchange, or for a preference the chosen and the rejected one. `names` are those of its columns.

    `chat`: plain text is a user's and an assistant's turn. Raises RejectedError.
    """
    values = {field: _value(row, names.get(field, field)) for field in FIELDS[kind]}
    for field, needed in FIELDS[kind].items():
        if needed and values[field] is None:
            has = ", ".join(str(name) for name in row)
            raise RejectedError(f"no field '{_shown(names.get(field, field))}'", f"it has {has}"[:80])
    context = _Context(values["system"], values["tools"], chat)
    if kind == "chat":
        return [context.exchange(turns_of(values["messages"]))]
    if kind == "prompt_completion":
        return [context.answered(values["prompt"], values["completion"])]
    prompt, chosen, rejected = (values[field] for field in ("prompt", "chosen", "rejected"))
    if chosen == rejected:
        raise RejectedError("chosen and rejected are the same")
    if prompt is None:
        prompt, chosen, rejected = _common_start(chosen, rejected)
    return [context.answered(prompt, chosen), context.answered(prompt, rejected)]


def _value(row: Mapping[str, Any], name: str | tuple[str, ...]) -> Any:
    if isinstance(name, str):
        return look_up(row, name)
    texts = [text for text in (look_up(row, each) for each in name) if text is not None and text != ""]
    if not all(isinstance(text, str) for text in texts):
        raise RejectedError(f"'{_shown(name)}' are not all text")
    return "\n\n".join(texts) if texts else None


def _shown(name: str | tuple[str, ...]) -> str:
    return name if isinstance(name, str) else ", ".join(name)


def _common_start(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise RejectedError("no field 'prompt'")
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    return chosen[:same], chosen[same:], rejected[same:]


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
