"""With which tokens a chat template ends an assistant's turn: where a model that learnt it stops."""

from __future__ import annotations

from pathlib import Path

from data_prep.chat.encode import SampleEncoder
from data_prep.chat.records import Exchange
from data_prep.chat.settings import SamplesSection
from data_prep.chat.spans import ASSISTANT, PROBE, assistant_spans
from data_prep.chat.template import Message
from data_prep.documents import RejectedError
from llmtrain.errors import DataError

_TOOL = {
    "type": "function",
    "function": {
        "name": "legs",
        "description": "Counts legs.",
        "parameters": {"type": "object", "properties": {"animal": {"type": "string"}}},
    },
}
_CALL: Message = {
    "role": ASSISTANT,
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "legs", "arguments": {"animal": "spider"}}}],
}


def turn_ends(folder: Path, settings: SamplesSection) -> dict[str, int]:
    """Token and id of what ends the turns that are learnt, by the rule that marks them; empty without any.

    A turn that calls a tool may end with a token of its own, so one is asked for as well, where the template
    knows tools.
    """
    encoder = SampleEncoder(folder, settings, None)
    try:
        template = encoder.template
    except DataError:  # plain prompts and completions need none
        return {}
    found: dict[str, int] = {}
    for exchange in (Exchange(PROBE[:2]), Exchange(PROBE), Exchange((PROBE[0], _CALL), (_TOOL,))):
        try:
            text, spans = assistant_spans(template, exchange, encoder.special, settings.turns)
        except RejectedError:
            continue
        for start, end in spans:
            said = text[start:end].rstrip()
            token = max((token for token in encoder.special if said.endswith(token)), key=len, default="")
            number = encoder.rendering.token_to_id(token)
            if number is not None:
                found[token] = number
    return found
