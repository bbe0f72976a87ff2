"""The part of a corpus file that says how records become samples."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field

from llmtrain.config.schema import Section
from llmtrain.data.manifest import Kind

# The fields of a record of each kind, and whether it must have them.
FIELDS: dict[Kind, dict[str, bool]] = {
    "text": {},
    "chat": {"messages": True, "system": False, "tools": False},
    "prompt_completion": {"prompt": True, "completion": True, "system": False, "tools": False},
    "preference": {"prompt": False, "chosen": True, "rejected": True, "system": False, "tools": False},
}
Turns = Literal["all", "last"]


class SamplesSection(Section):
    """How records of fine-tuning data become samples.

    max_tokens           no sample is longer; without it none is too long
    too_long             drop a longer one; or truncate it to its beginning, if that has a token to train on;
                         or truncate_left: its first turns go, the system turn and the last ones stay
    turns                learn every assistant turn, or only the last one of each conversation
    apply_chat_template  plain prompts and their answers become a user's and an assistant's turn
    chat_template        which of the tokenizer's templates; default: tool_use, if there is one, for what
                         comes with tools, and the default one for the rest
    variables            given to the chat template besides the conversation, such as enable_thinking
    today                the date that a template which writes today's date is given
    """

    max_tokens: int | None = Field(default=None, ge=2)
    too_long: Literal["drop", "truncate", "truncate_left"] = "drop"
    turns: Turns = "all"
    apply_chat_template: bool = False
    chat_template: str | None = None
    variables: dict[str, Any] = {}
    today: date | None = None
