"""Keys and tokens that can be told by their form: each is looked for only where its mark stands."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Signs: a text without one holds none of the marks below it. Each begins with one character, which is scanned
# for much faster than a set of them or than mark after mark.
_CAPITAL = re.compile(r"A(?:[KS]IA|Iza)")
_UNDERLINE = re.compile(r"_(?:(?<=gh[pousr]_)|(?<=hf_)(?<!\whf_)|(?<=github_)(?=pat_)|(?<=sk_)(?=live_))")
_HYPHEN = re.compile(r"-(?:(?<=sk-)(?<!\wsk-)|(?<=glpat-)|(?<=xapp-)|(?<=xox[abeoprs]-)|(?=----BEGIN ))")
_JWT = re.compile(r"J(?<=eyJ)")
_GITHUB = re.compile(r"gh[pousr]_[A-Za-z0-9]{36,251}(?!\w)")
_AWS = re.compile(r"A[KS]IA[A-Z2-7]{16}(?!\w)")
# What a text must hold -> the sign of it, and the whole token from there on.
_TOKENS = {
    "AKIA": (_CAPITAL, _AWS),
    "ASIA": (_CAPITAL, _AWS),
    "ghp_": (_UNDERLINE, _GITHUB),
    "gho_": (_UNDERLINE, _GITHUB),
    "ghu_": (_UNDERLINE, _GITHUB),
    "ghs_": (_UNDERLINE, _GITHUB),
    "ghr_": (_UNDERLINE, _GITHUB),
    "github_pat_": (_UNDERLINE, re.compile(r"github_pat_[A-Za-z0-9_]{40,244}(?!\w)")),
    "glpat-": (_HYPHEN, re.compile(r"glpat-[\w-]{20,300}(?:\.[\w-]{2,20}){0,3}")),
    "xox": (
        _HYPHEN,
        re.compile(r"xox[abeoprs]-(?:[A-Za-z0-9]{1,80}-){0,6}[A-Za-z0-9]{10,250}(?![\w-])"),
    ),
    "xapp-": (_HYPHEN, re.compile(r"xapp-[0-9]-[A-Z0-9]{5,20}-[0-9]{5,20}-[a-f0-9]{32,80}(?![\w-])")),
    "AIza": (_CAPITAL, re.compile(r"AIza[\w-]{35}(?![\w-])")),
    "sk-": (  # OpenAI, Anthropic and others
        _HYPHEN,
        re.compile(r"sk-(?=[A-Za-z_-]{0,80}[0-9])[\w-]{20,250}(?![\w-])"),
    ),
    "sk_live_": (_UNDERLINE, re.compile(r"sk_live_[0-9A-Za-z]{16,250}(?!\w)")),
    "hf_": (_UNDERLINE, re.compile(r"hf_[A-Za-z]{30,40}(?!\w)")),
    "eyJ": (_JWT, re.compile(r"eyJ[\w-]{10,4000}\.eyJ[\w-]{10,16000}\.[\w-]{16,4000}")),
    "-----BEGIN ": (
        _HYPHEN,
        re.compile(
            r"-----BEGIN (?P<name>(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?)-----(?:[^-]|-(?!----)){40,20000}"
            r"-----END (?P=name)-----"
        ),
    ),
}
_RUN = re.compile(r"[\w.-]*")


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """Where they stand: AWS, GitHub, GitLab, Slack, Google, OpenAI's form, Stripe, Hugging Face, JWT, PEM."""
    signs = {sign for sign in (_CAPITAL, _UNDERLINE, _HYPHEN, _JWT) if sign.search(text)}
    if not signs:
        return
    for mark, (sign, token) in _TOKENS.items():
        at = text.find(mark) if sign in signs else -1
        while at >= 0:
            within_word = at > 0 and (text[at - 1].isalnum() or text[at - 1] == "_")
            match = None if within_word else token.match(text, at)
            if match:
                yield match.span()
            end = match.end() if match else at + 1
            if mark == "eyJ" and (run := _RUN.match(text, end)):
                end = run.end()  # a long run that is no token is not tried again from its middle
            at = text.find(mark, end)
