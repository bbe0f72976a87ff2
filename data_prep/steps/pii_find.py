"""Where personal data stands in a text: places and kinds, found by form and proved by checksum.

Most text has none, so every kind has a mark that is cheap to look for (`@`, a run of digits, `ghp_`), and
only around marks is looked closely. Where a number has no check digit, or a weak one and no form of its
own, a label before it (`Tel.`, `PESEL`) must say what it is.
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from data_prep.steps.checksums import IBAN_LENGTHS, NATIONAL_IDS, is_card, is_iban
from data_prep.steps.secrets import secrets


class Span(NamedTuple):
    """A place in a text, and the kind of what stands there."""

    start: int
    end: int
    kind: str


def masked(text: str, spans: Sequence[Span], placeholders: Mapping[str, str]) -> str:
    """The text with every span replaced by its kind's placeholder; spans in order, none overlaps another."""
    pieces, done = [], 0
    for span in spans:
        pieces += [text[done : span.start], placeholders[span.kind]]
        done = span.end
    return "".join([*pieces, text[done:]])


# What is scanned for numbers is the text's shape, a byte per character: one sign for all digits, one for all
# capitals. A pattern that begins with one sign is found many times faster than one that begins with a set.
def _shapes() -> bytes:
    """The sign of each character of Latin 1. Of what lies beyond none is told from another."""
    signs = bytearray(b"x" * 256)
    for characters, sign in (
        (string.digits, "0"),
        (string.ascii_uppercase, "A"),
        (string.ascii_lowercase, "a"),
        (" ()/\u00a0-", " "),  # with the dot, what may stand between the digits of a number
        (".", "."),
    ):
        for character in characters:
            signs[ord(character)] = ord(sign)
    return bytes(signs)


_SHAPES = _shapes()
_NUMBERS = re.compile(rb"0(?:(0{0,2}\.0{1,3}\.0{1,3}\.0{1,3}(?!\.?0))|(?:[ .]{0,2}0){6,})")
_ITALIAN_SHAPE = re.compile(rb"A(?<![Aa0]A)A{5}[0A]{2}A[0A]{2}A[0A]{3}A(?![Aa0])")
_DAY = re.compile(r"[0-9]{4}([-/.])[0-9]{2}\1[0-9]{2}(?: [0-9]{2})?")  # the commonest of all, and no number
_BESIDE = 3  # characters of a number before and after its run of digits, as in (212) and 12345678-Z
_CORSICAN = 12  # a French number of Corsica has a letter, 2A or 2B, before its last eight digits
_IBAN_BEFORE = 12  # letters of the country and the bank
_LABEL = 24

_LOCAL_PART = re.compile(r"[\w.%+'-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}([^\W\d_]{2,24}|xn--[a-z0-9-]{2,59})(?![\w@])")
_NO_DOMAINS = {"png", "jpg", "jpeg", "gif", "svg", "webp", "js", "css", "json", "html", "xml", "pdf", "txt"}

_IPV4 = re.compile(r"(?<![\w.-])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[0-9])")
_IPV6_MARK = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6_CHARS = frozenset("0123456789abcdefABCDEF:.")
_VERSION = re.compile(
    r"(?:\b(?:v|ver|version|release|build|rev|revision|firmware|driver|section|sec|chapter|fig|figure|table|clause"
    r"|upgrade[ds]? (?:to|from)|oid)[\s.:=#(]{0,3}|[A-Za-z]/|==|>=|<=|~=|[A-Za-z]-|§\s?)\Z",
    re.IGNORECASE,
)

_IBAN = re.compile(
    r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z][0-9]{2}"
    r"(?:[A-Z0-9]{11,29}|(?:[ \u00a0-][A-Z0-9]{4}){2,7}(?:[ \u00a0-][A-Z0-9]{1,3})?)(?![A-Za-z0-9])"
)
_CARD = re.compile(
    r"[0-9](?<![\w.-][0-9])(?<![0-9] [0-9])(?:[0-9]{12,18}|[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
    r"|[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5})(?![\w-]|\.[0-9]| [0-9]{4})"
)

_COUNTRY_CODE = (
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|21[12368]|22[0-9]|23[0-9]|24[0-9]|25[0-8]"
    r"|26[0-9]|29[01789]|35[0-9]|37[0-8]|38[0-35-79]|42[013]|50[0-9]|59[0-9]|67[02-9]|68[0-35-9]|69[0-2]"
    r"|80[08]|85[02356]|87[08]|88[0-368]|96[0-8]|97[0-79]|99[2-68])"
)
_ALONE = r"(?<![\w.,+/-])(?<![0-9] )"  # not within a row of numbers
_PHONES = (
    re.compile(rf"\+(?<![\w+]\+){_COUNTRY_CODE}(?:[ .()/\u00a0-]{{0,2}}[0-9]){{6,12}}(?!\w|[.-][0-9])"),
    re.compile(  # no 0 follows the country but Italy's: code points in fours look alike
        rf"{_ALONE}00{_COUNTRY_CODE}[ /-](?:(?<=0039.)|(?!0[0-9]))"
        r"(?:[ .()/-]{0,2}[0-9]){6,12}(?!\w|[.-][0-9])"
    ),
    re.compile(  # North America
        rf"{_ALONE}(?:1[ .-])?(?:\([2-9][0-8][0-9]\) ?[2-9][0-9]{{2}}[ .-]"
        r"|[2-9][0-8][0-9]([ .-])[2-9][0-9]{2}\1)[0-9]{4}(?!\w|[ .-][0-9])"
    ),
    re.compile(  # with the 0 dialled within a country: groups of 9 to 11 digits in all, and no ZIP code
        rf"{_ALONE}(?![0-9]{{5}}-[0-9]{{4}}\b)(?=(?:[^0-9]{{0,2}}[0-9]){{9,11}}(?![0-9]|[ ./-][0-9]))"
        r"(?:\(0[1-9][0-9]{0,4}\) ?[0-9]{2,8}(?:([ -])[0-9]{2,4}(?:\1[0-9]{2,4}){0,2})?"
        r"|0[1-9][0-9]{0,4}(?:[ /-][0-9]{2,8}(?:([ -])[0-9]{2,4}(?:\2[0-9]{2,4}){0,2})?|(?:\.[0-9]{2}){4}))"
        r"(?!\w|[ ./-][0-9])"
    ),
)
# Before a number of no form of its own.
_PHONE_LABEL = re.compile(
    r"\b(?:tel|phone|fax|telefon|téléphone|telefono|teléfono|tlf|handy|mob|whatsapp|sms)"
    r"(?:ephone|ax|[a-zé]{0,3})(?: (?:number|no|nr|at|us at))?[\s.:#(]{1,3}\Z",
    re.IGNORECASE,
)
_WORD_LABEL = re.compile(  # words of other uses too: a function is called, a sheet has cells
    r"\b(?:call|cell)(?:phone)?(?: (?:number|no|nr|phone|me|us|at|on)){0,2}[\s.:(]{1,3}\Z",
    re.IGNORECASE,
)
_DIALLED = re.compile(r"\D*(?:[0-9]\D*){9}|[0-9][0-9()]*[ ./\u00a0-]")  # nine digits, or groups of them
_LABELLED_PHONE = re.compile(r"[0-9](?:[ .()/\u00a0-]{0,2}[0-9]){6,14}(?!\w|[.-][0-9])")
_ID_LABELS = {
    "br": (re.compile(r"\bCPF\W{1,3}\Z", re.IGNORECASE), re.compile(r"[0-9]{11}(?!\w)")),
    "pl": (re.compile(r"\bPESEL\W{1,3}(?:nr\W{1,2})?\Z", re.IGNORECASE), re.compile(r"[0-9]{11}(?!\w)")),
    "nl": (
        re.compile(r"\b(?:BSN|burgerservicenummer|sofinummer)\W{1,3}\Z", re.IGNORECASE),
        re.compile(r"(?:[0-9]{9}|[0-9]{4}\.[0-9]{2}\.[0-9]{3})(?!\w)"),
    ),
}

_IDS = {
    "es": re.compile(r"(?<![\w.-])(?:[XYZ]-?[0-9]{7}|[0-9]{8})[- ]?[A-Z](?![\w-])"),
    "br": re.compile(r"(?<![\w.-])[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}(?![\w-])"),
    "fr": re.compile(
        r"(?<![\w.-])[1-478](?: ?[0-9]{2}){2} ?(?:[0-9]{2}|2[AB])(?: ?[0-9]{3}){2} ?[0-9]{2}(?![\w-]|\.[0-9])"
    ),
    "se": re.compile(r"(?<![\w.-])(?:[0-9]{2})?[0-9]{6}[-+][0-9]{4}(?![\w-]|\.[0-9])"),
    "ch": re.compile(r"(?<![\w.-])756([. ]?)[0-9]{4}\1[0-9]{4}\1[0-9]{2}(?![\w-])"),
    "us": re.compile(r"(?<![\w.-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\w-])"),
}
_DIGIT = "[0-9LMNP-V]"  # two people of the same code are told apart by letters in place of digits
_ITALIAN = re.compile(rf"[A-Z]{{6}}{_DIGIT}{{2}}[A-EHLMPRST]{_DIGIT}{{2}}[A-Z]{_DIGIT}{{3}}[A-Z]")


class Finder:
    """Finds the kinds asked for. Of two that overlap the first is believed: those that prove more."""

    def __init__(self, kinds: frozenset[str], private_ips: bool, countries: tuple[str, ...]):
        self.kinds, self.private_ips, self.countries = kinds, private_ips, countries
        lookers: dict[str, Callable[[str, int, int], Iterator[tuple[int, int]]]] = {
            "iban": _ibans,
            "credit_card": _cards,
            "national_id": self._ids,
            "ip": self._ipv4,
            "phone": _phones,
        }
        self._near_numbers = [(kind, look) for kind, look in lookers.items() if kind in kinds]

    def __call__(self, text: str) -> list[Span]:
        """What is found, in the order of the text, without overlaps."""
        found: list[Span] = []
        shape = text.encode("latin-1", "replace").translate(_SHAPES)
        if "secret" in self.kinds:
            found += [Span(start, end, "secret") for start, end in secrets(text)]
        if "email" in self.kinds and "@" in text:
            found += [Span(start, end, "email") for start, end in _emails(text)]
        if "ip" in self.kinds and ":" in text:
            found += [Span(start, end, "ip") for start, end in self._ipv6(text)]
        if "national_id" in self.kinds and "it" in self.countries:
            found += [Span(*span, "national_id") for span in _italians(text, shape)]
        if self._near_numbers:
            addresses, numbers = _numbers(text, shape)
            for kind, look in self._near_numbers:
                places = addresses if kind == "ip" else numbers
                found += [Span(*span, kind) for low, high in places for span in look(text, low, high)]
        return apart(found) if found else found

    def _ipv4(self, text: str, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Small numbers, but perhaps the last, are a version (or a public resolver, nobody's address)."""
        match = _IPV4.match(text, low, high)
        if not match or not self._is_address(match[0]):
            return
        numbers = match[0].split(".")
        backwards = text.startswith(".in-addr", match.end()) or numbers[2:] == ["168", "192"]
        leading = numbers if numbers[0] == "10" else numbers[:3]  # a private network's begins so
        if max(map(int, leading)) < 20 or (backwards and not self._is_address(".".join(numbers[::-1]))):
            return
        if not _VERSION.search(text, max(low - 20, 0), low):
            yield match.span()

    def _ipv6(self, text: str) -> Iterator[tuple[int, int]]:
        end = 0
        for mark in _IPV6_MARK.finditer(text):
            if mark.start() < end:
                continue
            start, end = mark.span()
            while start and text[start - 1] in _IPV6_CHARS and mark.start() - start < 40:
                start -= 1
            while end < len(text) and text[end] in _IPV6_CHARS and end - start < 46:
                end += 1
            if not self.private_ips and text[start] not in "23":  # 2000::/3 is all that is public
                continue
            address = text[start:end].rstrip(".")
            if address.endswith(":") and not address.endswith("::"):
                address = address[:-1]
            beside = text[start - 1 : start] + text[start + len(address) : start + len(address) + 1]
            if not re.search(r"\w", beside) and self._is_address(address):
                yield start, start + len(address)

    def _is_address(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        if self.private_ips:
            return not found.is_unspecified
        return (
            found.is_global and not found.is_multicast and (found.version == 4 or found.packed[0] >> 5 == 1)
        )

    def _ids(self, text: str, low: int, high: int) -> Iterator[tuple[int, int]]:
        for country in self.countries:
            if country in _IDS:
                before = _CORSICAN if country == "fr" else _BESIDE
                for match in _IDS[country].finditer(text, max(low - before, 0), high + _BESIDE):
                    if NATIONAL_IDS[country](re.sub(r"[ .+-]", "", match[0])):
                        yield match.span()
            if country in _ID_LABELS:
                label, number = _ID_LABELS[country]
                found = number.match(text, low) if label.search(text, max(low - _LABEL, 0), low) else None
                if found and NATIONAL_IDS[country](found[0].replace(".", "")):
                    yield found.span()


def _numbers(text: str, shape: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where four numbers stand as in an address, and where there are enough digits for the other kinds."""
    addresses, numbers = [], []
    for match in _NUMBERS.finditer(shape):
        if match[1] is not None:
            addresses.append((match.start(), match.end() + 2))
        elif not _DAY.fullmatch(text, *match.span()):
            numbers.append(match.span())
    return addresses, numbers


def _italians(text: str, shape: bytes) -> Iterator[tuple[int, int]]:
    for place in _ITALIAN_SHAPE.finditer(shape):
        match = _ITALIAN.match(text, place.start())
        if match and NATIONAL_IDS["it"](match[0]):
            yield match.span()


def apart(found: Sequence[Span]) -> list[Span]:
    """In the order of the text, and of two that overlap the one that was found first."""
    kept: list[tuple[Span, int]] = []
    for rank, span in sorted(enumerate(found), key=lambda one: one[1]):
        if not kept or kept[-1][0].end <= span.start:
            kept.append((span, rank))
        elif rank < kept[-1][1]:
            kept[-1] = (span, rank)
    return [span for span, _ in kept]


def _emails(text: str) -> Iterator[tuple[int, int]]:
    at = text.find("@")
    while at >= 0:
        local = _LOCAL_PART.search(text, max(at - 64, 0), at)
        domain = _DOMAIN.match(text, at + 1) if local else None
        if local and domain:
            start = at - len(local[0].lstrip(".'%+-"))
            ssh = text[domain.end() : domain.end() + 1] == ":" and text[start:at] == "git"
            if start < at and text[at - 1] != "." and domain[1].lower() not in _NO_DOMAINS and not ssh:
                yield start, domain.end()
        at = text.find("@", at + 1)


def _ibans(text: str, low: int, high: int) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text, max(low - _IBAN_BEFORE, 0), high + 34):
        code = re.sub(r"[ \u00a0-]", "", match[0])
        if is_iban(code):
            yield match.span()
            continue
        length = IBAN_LENGTHS.get(code[:2], 0)  # words in capitals may follow
        if length < len(code) and is_iban(code[:length]):
            ends = [place for place, char in enumerate(match[0], 1) if char.isalnum()]
            yield match.start(), match.start() + ends[length - 1]


def _cards(text: str, low: int, high: int) -> Iterator[tuple[int, int]]:
    if high - low >= 13:
        for match in _CARD.finditer(text, low, high + _BESIDE):
            if is_card(re.sub("[ -]", "", match[0])):
                yield match.span()


def _phones(text: str, low: int, high: int) -> Iterator[tuple[int, int]]:
    for pattern in _PHONES:
        for match in pattern.finditer(text, max(low - _BESIDE, 0), high + _BESIDE):
            yield match.span()
    labelled = _LABELLED_PHONE.match(text, low)
    if labelled is None:
        return
    before = max(low - _LABEL, 0)
    if _PHONE_LABEL.search(text, before, low) or (
        _DIALLED.match(labelled[0]) and _WORD_LABEL.search(text, before, low)
    ):
        yield labelled.span()
