"""The filters' rules written straight from the papers' sentences, slowly: what steps are compared with."""

from __future__ import annotations

import re
from collections import Counter


def words_of(text: str) -> list[str]:
    return text.split()


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def gopher_quality(text: str) -> set[str]:
    """Rae et al. 2021, A.1.1: all rules that a text breaks."""
    words, lines = words_of(text), lines_of(text)
    broken = set()
    # "does not contain between 50 and 100,000 words"
    if len(words) < 50:
        broken.add("too few words")
    if len(words) > 100_000:
        broken.add("too many words")
    # "mean word length is outside the range of 3 to 10 characters"
    mean = sum(len(word) for word in words) / len(words)
    if mean < 3:
        broken.add("words too short")
    if mean > 10:
        broken.add("words too long")
    # "symbol-to-word ratio greater than 0.1 for either the hash symbol or the ellipsis"
    if text.count("#") / len(words) > 0.1:
        broken.add("too many hashes")
    if (text.count("...") + text.count("…")) / len(words) > 0.1:
        broken.add("too many ellipses")
    # "more than 90% of lines starting with a bullet point, or more than 30% ending with an ellipsis"
    bullets = [line for line in lines if line[0] in "•‣◦▪■●–-*"]
    if len(bullets) / len(lines) > 0.9:
        broken.add("too many bullet lines")
    trailing = [line for line in lines if line.endswith(("...", "…"))]
    if len(trailing) / len(lines) > 0.3:
        broken.add("too many lines end in an ellipsis")
    # "80% of words in a document contain at least one alphabetic character"
    alphabetic = [word for word in words if any(character.isalpha() for character in word)]
    if len(alphabetic) / len(words) < 0.8:
        broken.add("too few words with a letter")
    # "at least two of the following English words: the, be, to, of, and, that, have, with"
    bare = {"".join(re.findall(r"^[^A-Za-z]*([A-Za-z]+)[^A-Za-z]*$", word)).lower() for word in words}
    if len(bare & {"the", "be", "to", "of", "and", "that", "have", "with"}) < 2:
        broken.add("too few stop words")
    return broken


def gopher_repetition(text: str) -> set[str]:
    """Rae et al. 2021, table A1: all rules that a text breaks."""
    broken = set()
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    for what, parts in (("paragraphs", paragraphs), ("lines", lines_of(text))):
        seen: set[str] = set()
        repeats = []
        for part in parts:
            if part in seen:
                repeats.append(part)
            seen.add(part)
        if parts and len(repeats) / len(parts) > 0.30:
            broken.add(f"duplicate {what}")
        if sum(len(part) for part in repeats) / len(text) > 0.20:
            broken.add(f"characters in duplicate {what}")
    words = words_of(text)
    for n, most in ((2, 0.20), (3, 0.18), (4, 0.16)):
        counts = Counter(" ".join(words[at : at + n]) for at in range(len(words) - n + 1))
        often = max(counts.values(), default=0)
        top = max((len(gram) for gram, count in counts.items() if count == often), default=0)
        if often > 1 and top * often / len(text) > most:
            broken.add(f"characters in the top {n}-gram")
    for n, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)):
        grams: set[tuple[str, ...]] = set()
        inside: set[int] = set()
        for at in range(len(words) - n + 1):
            gram = tuple(words[at : at + n])
            if gram in grams:
                inside.update(range(at, at + n))
            grams.add(gram)
        if sum(len(words[at]) for at in inside) / len(text) > most:
            broken.add(f"characters in duplicate {n}-grams")
    return broken


POLICY = ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"]


def c4(text: str, terminal_punctuation: bool = True) -> tuple[str | None, str]:
    """Raffel et al. 2020, 2.2: the rule that the page breaks, or None and what is left of it."""
    # "any pages that contained a curly bracket", "any page where the phrase 'lorem ipsum' appeared"
    if "{" in text:
        return "curly bracket", ""
    if "lorem ipsum" in text.lower():
        return "lorem ipsum", ""
    kept = []
    for line in lines_of(text):
        line = re.sub(r"\[citation needed\]|\[edit\]|\[[0-9]*\]", "", line).strip()
        # "only retained lines that ended in a terminal punctuation mark"
        marked = line[-1:] in list(".!?\"'”’") and line[-3:] != "..."
        # "only retained lines that contained at least 3 words"
        if terminal_punctuation and not marked or len(line.split()) < 3:
            continue
        # "removed any line with the word Javascript"; cookie and terms-of-use notices
        if "javascript" in line.lower() or any(phrase in line.lower() for phrase in POLICY):
            continue
        if max(len(word) for word in line.split()) <= 1000:
            kept.append(line)
    # "any page with fewer than 5 sentences": a mark, then white space and no small letter; the line's end
    count = 0
    for line in kept:
        pieces = re.split(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[^a-z\s])", line)
        count += len(pieces)
    return ("too few sentences" if count < 5 else None), "\n".join(kept)


def fineweb(text: str) -> set[str]:
    """Penedo et al. 2024, 3.6, and datatrove's fourth rule: all rules that a text breaks."""
    lines = lines_of(text)
    broken = set()
    if len([line for line in lines if line[-1] in ".!?"]) / len(lines) < 0.12:
        broken.add("too few lines end in punctuation")
    if len([line for line in lines if len(line) <= 30]) / len(lines) > 0.67:
        broken.add("too many short lines")
    repeats = [line for at, line in enumerate(lines) if line in lines[:at]]
    if sum(map(len, repeats)) / len(text.replace("\n", "")) > 0.01:
        broken.add("characters in duplicate lines")
    if text.count("\n") / len(words_of(text)) > 0.3:
        broken.add("too many lines for its words")
    return broken
