"""Numbers that carry their own check: cards, bank accounts, national identity numbers."""

from __future__ import annotations

from collections.abc import Callable

# Lengths of an IBAN by country (ISO 13616 registry).
IBAN_LENGTHS = {
    name: int(length)
    for length, names in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FO GL NL SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU XK",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for name in names.split()
}
# Lengths of a card number by the first digits of its issuer: from, to (both included), lengths.
CARD_ISSUERS = (
    ("34", "34", (15,)),
    ("37", "37", (15,)),
    ("300", "305", (14,)),
    ("36", "36", (14,)),
    ("38", "39", (14,)),
    ("3528", "3589", (16,)),
    ("4", "4", (13, 16, 19)),
    ("51", "55", (16,)),
    ("2221", "2720", (16,)),
    ("6011", "6011", (16,)),
    ("644", "649", (16,)),
    ("65", "65", (16,)),
    ("62", "62", (16, 17, 18, 19)),
)
_SPANISH_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
# Values of a character at an odd place of an Italian code: 0 to 9, which A to J share, then K to Z.
_ITALIAN_ODD = [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23]


def luhn(digits: str) -> bool:
    """The check of cards and many national numbers: every second digit from the right is doubled."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + doubled) % 10 == 0


def is_card(digits: str) -> bool:
    """A card number of an issuer that is known, with its check digit."""
    known = any(
        len(digits) in lengths and low <= digits[: len(low)] <= high for low, high, lengths in CARD_ISSUERS
    )
    return known and luhn(digits)


def is_iban(code: str) -> bool:
    """An IBAN without spaces, of its country's length, with its check digits."""
    if IBAN_LENGTHS.get(code[:2]) != len(code):
        return False
    return int("".join(str(int(char, 36)) for char in code[4:] + code[:4])) % 97 == 1


def _date(year: int, month: int, day: int) -> bool:
    """Whether there is such a day; the year matters for February only."""
    if not 1 <= month <= 12:
        return False
    longest = 30 if month in (4, 6, 9, 11) else 31
    if month == 2:
        longest = 28 + (year % 4 == 0)
    return 1 <= day <= longest


def _es(code: str) -> bool:
    digits = code[:-1].translate(str.maketrans("XYZ", "012"))
    return len(digits) == 8 and _SPANISH_LETTERS[int(digits) % 23] == code[-1]


def _br(digits: str) -> bool:
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    for place in (9, 10):
        total = sum(int(digit) * (place + 1 - at) for at, digit in enumerate(digits[:place]))
        if int(digits[place]) != total * 10 % 11 % 10:
            return False
    return True


def _pl(digits: str) -> bool:
    if len(digits) != 11:
        return False
    total = sum(
        int(digit) * weight for digit, weight in zip(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), strict=True)
    )
    return total % 10 == 0 and _date(int(digits[:2]), int(digits[2:4]) % 20, int(digits[4:6]))


def _it(code: str) -> bool:
    total = 0
    for place, char in enumerate(code[:15], 1):
        value = int(char) if char.isdigit() else ord(char) - ord("A")
        total += _ITALIAN_ODD[value] if place % 2 else value
    return len(code) == 16 and chr(ord("A") + total % 26) == code[15]


def _nl(digits: str) -> bool:
    if len(digits) != 9 or digits == "000000000":
        return False
    return (
        sum(int(digit) * weight for digit, weight in zip(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1), strict=True))
        % 11
        == 0
    )


def _fr(code: str) -> bool:
    number, month = code[:13].replace("2A", "19").replace("2B", "18"), int(code[3:5])
    if len(code) != 15 or not number.isdigit():
        return False
    return (1 <= month <= 12 or 20 <= month <= 42) and 97 - int(number) % 97 == int(code[13:])


def _se(digits: str) -> bool:
    short = digits[-10:]
    day = int(short[4:6])
    return _date(int(short[:2]), int(short[2:4]), day - 60 if day > 60 else day) and luhn(short)


def _ch(digits: str) -> bool:
    if len(digits) != 13 or not digits.startswith("756"):
        return False
    return sum(int(digit) * (1 + 2 * (at % 2)) for at, digit in enumerate(digits)) % 10 == 0


def _us(digits: str) -> bool:
    return (
        digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"
    )


# By country, whether a number without its separators can be one. All but the last have a check digit.
NATIONAL_IDS: dict[str, Callable[[str], bool]] = {
    "es": _es,
    "br": _br,
    "pl": _pl,
    "it": _it,
    "nl": _nl,
    "fr": _fr,
    "se": _se,
    "ch": _ch,
    "us": _us,
}
