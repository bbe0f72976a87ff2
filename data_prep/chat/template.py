"""The tokenizer's own chat template, rendered as `transformers` renders it, without importing it.

A template is a program that a stranger wrote: it runs in jinja2's sandbox and sees nothing but JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_prep.documents import RejectedError
from llmtrain.errors import DataError, nearest

TEMPLATE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"  # a folder: NAME.jinja each
DEFAULT, TOOL_USE = "default", "tool_use"
TOKENIZER_CONFIG = "tokenizer_config.json"
# What a `{% generation %}` block is put between while it is rendered. Records that hold one are rejected.
OPENED, CLOSED = "\U000ffff0", "\U000ffff1"

Message = dict[str, Any]
Span = tuple[int, int]  # characters start … end (exclusive)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, and whether generation blocks are marked in what it renders now."""

    marking = False


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: what an assistant writes, by the template's own word."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call, so that what it renders passes through `_mark`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        return OPENED + text + CLOSED if self.environment.marking else text  # type: ignore[attr-defined]


class _Namespace(jinja2.utils.Namespace):
    """`namespace(…)` without attributes that begin with `_`, which reach into the interpreter."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r} of a namespace")
        super().__setitem__(name, value)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. `marks` are the `{% generation %}` blocks in it."""

    text: str
    marks: tuple[Span, ...]


@dataclass(frozen=True)
class _Program:
    """A template ready to run. `words` are all names and texts in it; `marks`: it has generation blocks."""

    template: jinja2.Template
    words: frozenset[str]
    marks: bool


class ChatTemplate:
    """A tokenizer's templates with all they can see besides the conversation.

    sources    template by name; `tool_use`, if there is one, serves conversations with tools, as in
               transformers; the default one, the others
    variables  what every rendering is given: special tokens by role, and the corpus file's own
    today      what `strftime_now` tells the time from; None where that must not be asked
    chosen     the name of the only one that is used
    """

    def __init__(
        self, sources: Mapping[str, str], variables: Mapping[str, Any], today: date | None, chosen: str = ""
    ):
        self.variables = variables
        self.chosen = chosen
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_refuse, strftime_now=_clock(today), namespace=_Namespace)
        self._environment = environment
        used = {chosen} if chosen else {DEFAULT, TOOL_USE} & sources.keys()
        self.unused = tuple(sorted(sources.keys() - used))
        try:
            self._programs = {name: _program(environment, sources[name]) for name in used}
        except jinja2.TemplateError as error:
            raise DataError(f"the tokenizer's chat template is not valid Jinja: {error}") from None

    def has_marks(self, tools: Sequence[Any] | None = None) -> bool:
        """Whether what renders a conversation with these tools has `{% generation %}` blocks."""
        return self._program(tools).marks

    def names(self, word: str, tools: Sequence[Any] | None = None) -> bool:
        """Whether what renders a conversation with these tools has this word in it anywhere.

        A key that a template does not name has no effect on what it writes.
        """
        return word in self._program(tools).words

    def _program(self, tools: Sequence[Any] | None) -> _Program:
        return self._programs[self.chosen or (TOOL_USE if tools and TOOL_USE in self._programs else DEFAULT)]

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, prompt: bool = False
    ) -> Rendered:
        """Messages as text; with `prompt`, followed by what comes before an assistant's words.

        Raises RejectedError when the template raises anything.
        """
        text = self.text(messages, tools, prompt)
        if not self.has_marks(tools):
            return Rendered(text, ())
        marked = _without_marks(self._render(messages, tools, prompt, marking=True))
        if marked.text != text:
            raise RejectedError("the chat template changes the text between its generation marks")
        return marked

    def text(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, prompt: bool = False
    ) -> str:
        """As `render`, without the marks."""
        return self._render(messages, tools, prompt, marking=False)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: bool, marking: bool
    ) -> str:
        self._environment.marking = marking
        try:
            return self._program(tools).template.render(
                {
                    **self.variables,
                    "messages": list(messages),
                    "tools": list(tools) if tools else None,
                    "documents": None,
                    "add_generation_prompt": prompt,
                }
            )
        except DataError:
            raise
        except Exception as error:  # the template's own raise_exception, or any bug in it
            raise RejectedError("the chat template refuses it", str(error)) from None


def load_template(
    folder: Path, variables: Mapping[str, Any], today: date | None, chosen: str
) -> ChatTemplate:
    """The templates of a tokenizer folder. Raises DataError when it has none, or not the `chosen` one."""
    sources = template_sources(folder)
    if (chosen or DEFAULT) in sources:
        return ChatTemplate(sources, {**_special_tokens(_configuration(folder)), **variables}, today, chosen)
    known = f"it has {', '.join(sorted(sources))}"
    if sources and chosen:
        raise DataError(
            f"samples.chat_template = {chosen!r}: the tokenizer has no template of that name "
            f"({known}) {nearest(chosen, sources)}".rstrip()
        )
    if sources:
        raise DataError(
            f"tokenizer.source = {str(folder)!r} has no default chat template ({known}): name one in "
            "samples.chat_template"
        )
    raise DataError(
        f"tokenizer.source = {str(folder)!r} has no chat template, and messages are rendered by nothing "
        f"else: take the tokenizer of a chat model, or put a {TEMPLATE} into the tokenizer's folder"
    )


def template_sources(folder: Path) -> dict[str, str]:
    """The templates of a tokenizer folder by name, as transformers finds them."""
    files = {path.name.removesuffix(".jinja"): path for path in template_files(folder)}
    if (folder / TEMPLATE).is_file():
        files[DEFAULT] = folder / TEMPLATE
    if files:  # then what the configuration says does not count
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    found = _configuration(folder).get("chat_template")
    if isinstance(found, list):
        return {entry["name"]: entry["template"] for entry in found}
    return {DEFAULT: found} if isinstance(found, str) else dict(found or {})


def template_files(folder: Path) -> list[Path]:
    """The named templates of a tokenizer folder that lie in files of their own."""
    return sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))


def _configuration(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", TOKENIZER_CONFIG):
        if (folder / name).is_file():
            config |= json.loads((folder / name).read_text(encoding="utf-8"))
    return config


def _program(environment: jinja2.Environment, source: str) -> _Program:
    tree = environment.parse(source)
    words = {node.attr for node in tree.find_all(nodes.Getattr)}
    words |= {node.name for node in tree.find_all(nodes.Name)}
    words |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    calls = (block.call.node for block in tree.find_all(nodes.CallBlock))
    marks = any(isinstance(call, nodes.ExtensionAttribute) for call in calls)
    return _Program(environment.from_string(source), frozenset(words), marks)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, which templates write themselves."""
    found = {}
    for name, token in config.items():
        content = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found


def _without_marks(text: str) -> Rendered:
    """Takes the marks out of a rendering and says where they stood."""
    pieces: list[str] = []
    marks: list[Span] = []
    size, opened = 0, -1
    for part in text.replace(CLOSED, OPENED + CLOSED).split(OPENED):
        if part.startswith(CLOSED):
            if opened < 0:
                raise RejectedError("the chat template nests or cuts its generation marks")
            marks.append((opened, size))
            part, opened = part[1:], -1
        elif pieces:
            if opened >= 0:
                raise RejectedError("the chat template nests or cuts its generation marks")
            opened = size
        pieces.append(part)
        size += len(part)
    if opened >= 0:
        raise RejectedError("the chat template nests or cuts its generation marks")
    return Rendered("".join(pieces), tuple(marks))


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: jinja2's own would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _clock(today: date | None) -> Callable[[str], str]:
    def strftime_now(pattern: str) -> str:
        if today is None:
            raise DataError(
                "the tokenizer's chat template writes today's date, so the same corpus would give another "
                "dataset each day: set samples.today to a date such as 2026-01-31"
            )
        return datetime.combine(today, time()).strftime(pattern)

    return strftime_now
