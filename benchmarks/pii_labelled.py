"""Sentences with personal data, and with what only looks like it, for `pii.py`.

Every sentence is made of a carrier and one item. Half of the items are personal data, made from the
published formats with their check digits computed here (ISO 7064, Luhn, the national rules, E.164 numbers as
each country writes them); the others look like some: versions, hashes, decimal numbers, dates, order numbers,
UUIDs, timestamps, ISBNs, card and account numbers with a wrong check digit, C++ names. Nothing here is taken
from the patterns under test.
"""

from __future__ import annotations

import base64
import hashlib
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CARRIERS = (
    "{}",
    "Please note {} for later.",
    "We wrote it down as {}, then left.",
    "(see {})",
    'She said "{}" twice.',
    "The entry was {}.",
    "— {}; nothing else was there.",
    "id\t{}\tok",
)
NAMES = (
    "anna",
    "j.smith",
    "maria-jose",
    "o.brien",
    "li_wei",
    "x",
    "info",
    "k.mueller77",
    "a.b.c",
    "tom+news",
)
DOMAINS = (
    "example.com",
    "mail.example.org",
    "uni-jena.de",
    "firma.co.uk",
    "server1.lan.example.net",
    "a-b.io",
    "correo.es",
)
ALNUM = string.ascii_letters + string.digits

PHONES = (  # N is 2 to 9, D any digit
    "+1 (N1D) NDD-DDDD;+1-N0D-NDD-DDDD;(N3D) NDD-DDDD;N4D-NDD-DDDD;N5D.NDD.DDDD;+44 20 7DDD DDDD;"
    "020 7DDD DDDD;07NDD DDDDDD;(0161) NDD DDDD;+49 30 NDDDDDD;+49 (0)89 NDDDDD;0049 89 NDDDDD;"
    "0039 06 NDDD DDDD;030/NDDDDDD;0170-NDDDDDD;+33 6 DD DD DD DD;01 DD DD DD DD;06.DD.DD.DD.DD;"
    "+34 6ND DDD DDD;Tel. |6ND DDD DDD;phone: |NDDDDDDDD;+39 06 NDDD DDDD;02 NDDD DDDD;"
    "+31 6 NDDDDDDD;06-NDDDDDDD;020-NDD DDDD;+55 11 9NDDD-DDDD;+91 9DDDD DDDDD;+86 138 DDDD DDDD;"
    "+813NDDDDDDD;03-NDDD-DDDD;(02) NDDD DDDD;+41 44 NDD DD DD;044 NDD DD DD;+351 21 NDD DDDD;"
    "call |NDD-DDDD;call us at |NDDDDDDDDD;cell: |NDDDDDDDDD;"
    "+46 70 NDD DD DD;08-NDD DD DD;+48 22 NDD DD DD"
)


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def luhn_digit(body: str) -> str:
    """The digit that completes a number by ISO/IEC 7812-1, annex B."""
    total = 0
    for place, char in enumerate(reversed(body)):
        value = int(char) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def email(rng: random.Random) -> str:
    return f"{rng.choice(NAMES)}{rng.choice(['', '', digits(rng, 2)])}@{rng.choice(DOMAINS)}"


def phone(rng: random.Random) -> str:
    """A number as its country writes it."""
    return "".join(
        rng.choice("23456789") if char == "N" else rng.choice(string.digits) if char == "D" else char
        for char in rng.choice(PHONES.split(";"))
    )


def ip(rng: random.Random) -> str:
    if rng.random() < 0.6:
        first = rng.choice([5, 23, 31, 46, 52, 77, 81, 93, 104, 130, 151, 185, 193, 203, 212])
        rest = [rng.randrange(256), rng.randrange(256), rng.randrange(1, 255)]
        if first == 203 and rest[0] == 0:
            rest[0] = 7  # 203.0.113.0/24 is for documentation
        if first == 193 or first == 192:
            first = 194
        return ".".join(map(str, [first, *rest]))
    groups = [f"{rng.choice([0x2A00, 0x2A02, 0x2606, 0x2400]):x}"] + [
        f"{rng.randrange(65536):x}" for _ in range(7)
    ]
    if rng.random() < 0.5:
        return ":".join(groups)
    return ":".join(groups[: rng.randrange(2, 5)]) + "::" + ":".join(groups[6 : rng.choice([7, 8])])


def iban(rng: random.Random) -> str:
    country, body = rng.choice(
        (
            ("DE", digits(rng, 18)),
            (
                "FR",
                digits(rng, 10)
                + "".join(rng.choices(string.ascii_uppercase + string.digits, k=11))
                + digits(rng, 2),
            ),
            ("GB", "".join(rng.choices(string.ascii_uppercase, k=4)) + digits(rng, 14)),
            ("ES", digits(rng, 20)),
            ("NL", "".join(rng.choices(string.ascii_uppercase, k=4)) + digits(rng, 10)),
            ("NO", digits(rng, 11)),
            ("PL", digits(rng, 24)),
            ("CH", digits(rng, 17)),
        )
    )
    number = "".join(
        str(string.digits.find(c)) if c.isdigit() else str(ord(c) - 55) for c in body + country + "00"
    )
    whole = f"{country}{98 - int(number) % 97:02d}{body}"
    return whole if rng.random() < 0.5 else " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))


def credit_card(rng: random.Random) -> str:
    prefix, length = rng.choice(
        (("4", 16), ("5" + rng.choice("12345"), 16), ("37", 15), ("34", 15), ("6011", 16), ("36", 14))
    )
    body = prefix + digits(rng, length - 1 - len(prefix))
    whole = body + luhn_digit(body)
    way, between = rng.random(), rng.choice(" -")
    if way < 0.4:
        return whole
    cuts = {16: (4, 8, 12), 15: (4, 10), 14: (4, 10)}[length]
    return between.join(whole[a:b] for a, b in zip((0, *cuts), (*cuts, length), strict=True))


def born(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(100), rng.randrange(1, 13), rng.randrange(1, 29)


def spanish(rng: random.Random) -> str:
    number = rng.randrange(10**8)
    return f"{number:08d}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def spanish_foreigner(rng: random.Random) -> str:
    first, number = rng.randrange(3), rng.randrange(10**7)
    letter = "TRWAGMYFPDXBNJZSQVHLCKE"[(first * 10**7 + number) % 23]
    return f"{'XYZ'[first]}{number:07d}{rng.choice(['', '-'])}{letter}"


def brazilian(rng: random.Random) -> str:
    whole = digits(rng, 9)
    for start in (10, 11):
        rest = sum(int(digit) * weight for digit, weight in zip(whole, range(start, 1, -1), strict=True)) % 11
        whole += str(0 if rest < 2 else 11 - rest)
    return f"{whole[:3]}.{whole[3:6]}.{whole[6:9]}-{whole[9:]}"


def polish(rng: random.Random) -> str:
    year, month, day = born(rng)
    body = f"{year:02d}{month + rng.choice([0, 20]):02d}{day:02d}{digits(rng, 4)}"
    total = sum(int(digit) * (1, 3, 7, 9)[at % 4] for at, digit in enumerate(body))
    return f"{body}{-total % 10}"


def dutch(rng: random.Random) -> str:
    while True:
        body = digits(rng, 8)
        last = sum(int(digit) * weight for digit, weight in zip(body, range(9, 1, -1), strict=True)) % 11
        if last < 10 and body[0] != "0":
            return body + str(last)


def french(rng: random.Random) -> str:
    year, month, _ = born(rng)
    body = f"{rng.choice('12')}{year:02d}{month:02d}{rng.randrange(1, 96):02d}"
    body += f"{rng.randrange(1, 990):03d}{rng.randrange(1, 999):03d}"
    whole = f"{body}{97 - int(body) % 97:02d}"
    if rng.random() < 0.5:
        return whole
    return " ".join(whole[a:b] for a, b in ((0, 1), (1, 3), (3, 5), (5, 7), (7, 10), (10, 13), (13, 15)))


def swedish(rng: random.Random) -> str:
    year, month, day = born(rng)
    body = f"{year:02d}{month:02d}{day:02d}{digits(rng, 3)}"
    return f"{rng.choice(['', '19'])}{body[:6]}-{body[6:]}{luhn_digit(body)}"


def swiss(rng: random.Random) -> str:
    body = "756" + digits(rng, 9)
    check = -sum(int(digit) * (3 if at % 2 else 1) for at, digit in enumerate(body)) % 10
    return f"756.{body[3:7]}.{body[7:11]}.{body[11:]}{check}"


def italian(rng: random.Random) -> str:
    year, _, day = born(rng)
    consonants = "".join(rng.choices("BCDFGLMNPRSTVZ", k=6))
    body = f"{consonants}{year:02d}{rng.choice('ABCDEHLMPRST')}{day + rng.choice([0, 40]):02d}"
    body += rng.choice("ABCDEFGHIL") + digits(rng, 3)
    odd = dict(zip("ABCDEFGHIJ", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True))
    odd |= dict(zip("0123456789", odd.values(), strict=True))
    odd |= dict(
        zip("KLMNOPQRSTUVWXYZ", (2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23), strict=True)
    )
    even = dict(zip(string.ascii_uppercase, range(26), strict=True)) | {
        digit: int(digit) for digit in string.digits
    }
    total = sum(odd[char] if at % 2 == 0 else even[char] for at, char in enumerate(body))
    return body + string.ascii_uppercase[total % 26]


def national_id(rng: random.Random) -> str:
    """Those without a form of their own come with the label that they have in text; `|` ends it."""
    maker, labels = rng.choice(
        (
            (spanish, ("", "DNI ")),
            (spanish_foreigner, ("", "NIE: ")),
            (brazilian, ("", "CPF ")),
            (polish, ("PESEL: ", "PESEL ")),
            (dutch, ("BSN ", "BSN: ", "burgerservicenummer ")),
            (french, ("", "NIR ")),
            (swedish, ("", "personnummer ")),
            (swiss, ("", "AHV ")),
            (italian, ("", "C.F. ")),
        )
    )
    return f"{rng.choice(labels)}|{maker(rng)}"


def secret(rng: random.Random) -> str:
    def some(count: int, alphabet: str = ALNUM) -> str:
        return "".join(rng.choices(alphabet, k=count))

    def part(content: str) -> str:
        return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")

    body = "\n".join(some(64, ALNUM + "+/") for _ in range(6))
    kind = rng.choice(["RSA ", "EC ", "OPENSSH ", ""])
    return rng.choice(
        (
            "AKIA" + some(16, string.ascii_uppercase + "234567"),
            "ghp_" + some(36),
            "github_pat_" + some(22) + "_" + some(59),
            "glpat-" + some(20),
            f"xoxb-{digits(rng, 12)}-{digits(rng, 12)}-{some(24)}",
            "AIza" + some(35, ALNUM + "-_"),
            "sk-" + some(48),
            "sk-proj-" + some(80, ALNUM + "-_"),
            "hf_" + some(34, string.ascii_letters),
            ".".join((part('{"alg":"HS256","typ":"JWT"}'), part(f'{{"sub":"{some(10)}"}}'), some(43))),
            f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----",
        )
    )


def broken_luhn(rng: random.Random) -> str:
    whole = credit_card(rng)
    return whole[:-1] + str((int(whole[-1]) + rng.randrange(1, 10)) % 10)


def broken_iban(rng: random.Random) -> str:
    whole = iban(rng)
    return whole[:2] + f"{(int(whole[2:4]) + rng.randrange(1, 90)) % 97:02d}" + whole[4:]


def isbn(rng: random.Random) -> str:
    body = "978" + digits(rng, 9)
    short = f"{body[3]}-{body[4:7]}-{body[7:12]}-{rng.choice('0123456789X')}"
    check = -sum(int(digit) * (3 if at % 2 else 1) for at, digit in enumerate(body)) % 10
    return rng.choice(
        (f"ISBN 978-{body[3]}-{body[4:7]}-{body[7:]}-{check}", f"{body}{check}", short, f"ISBN {short}")
    )


def day(rng: random.Random) -> str:
    year, month, date = rng.randrange(1950, 2030), rng.randrange(1, 13), rng.randrange(1, 29)
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}"
    return rng.choice(
        (
            f"{year}-{month:02d}-{date:02d}",
            f"{date:02d}.{month:02d}.{year}",
            f"{month:02d}/{date:02d}/{year}",
            f"{year}-{month:02d}-{date:02d}T{clock}Z",
            f"{year}-{month:02d}-{date:02d} {clock}.{digits(rng, 6)}",
            f"{year}{month:02d}{date:02d}",
            f"{year}{month:02d}{date:02d}{clock.replace(':', '')}",
            f"{year}-{year + 4}, {year + 5}-{year + 9}",
        )
    )


LOOKALIKES: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: "v" + ".".join(str(rng.randrange(30)) for _ in range(rng.choice([2, 3, 4]))),
    lambda rng: "version " + ".".join(str(rng.randrange(40)) for _ in range(4)),
    lambda rng: f"Chrome/{rng.randrange(60, 130)}.0.{rng.randrange(1000, 7000)}.{rng.randrange(200)}",
    lambda rng: f"numpy=={rng.randrange(3)}.{rng.randrange(30)}.{rng.randrange(9)}.{rng.randrange(99)}",
    lambda rng: ".".join(str(rng.randrange(12)) for _ in range(4)),
    lambda rng: "1.3.6.1.4.1." + ".".join(str(rng.randrange(999)) for _ in range(3)),
    lambda rng: hashlib.sha256(rng.randbytes(8)).hexdigest(),
    lambda rng: hashlib.md5(rng.randbytes(8)).hexdigest(),
    lambda rng: hashlib.sha1(rng.randbytes(8)).hexdigest()[: rng.choice([7, 10, 12, 40])],
    lambda rng: f"{rng.randrange(1000)}.{digits(rng, rng.randrange(3, 17))}",
    lambda rng: f"{rng.random() * 10 ** rng.randrange(1, 9):,.4f}",
    lambda rng: f"-0.{digits(rng, 16)}e-{rng.randrange(10, 99)}",
    day,
    day,
    lambda rng: f"order {digits(rng, rng.randrange(6, 13))}",
    lambda rng: f"#{digits(rng, rng.randrange(6, 13))}",
    lambda rng: f"{digits(rng, 3)}-{digits(rng, 7)}-{digits(rng, 7)}",
    lambda rng: f"INV-{rng.randrange(2000, 2030)}-{digits(rng, 6)}",
    lambda rng: "-".join("".join(rng.choices("0123456789abcdef", k=size)) for size in (8, 4, 4, 4, 12)),
    lambda rng: str(rng.randrange(1_300_000_000, 1_800_000_000)),
    lambda rng: str(rng.randrange(1_300_000_000_000, 1_800_000_000_000)),
    lambda rng: str(rng.randrange(1_300_000_000_000_000, 1_800_000_000_000_000)),
    isbn,
    lambda rng: f"{rng.choice(['MA', 'NJ', 'CT', 'PR'])} 0{digits(rng, 4)}-{digits(rng, 4)}",
    broken_luhn,
    broken_iban,
    lambda rng: rng.choice(
        ("10.0.3.7", "192.168.1.20", "127.0.0.1", "172.16.9.4", "fe80::1", "::1", "fd12::9")
    ),
    lambda rng: rng.choice(
        ("std::vector", "abc::def", "Dead::Beef", "a::b", "12:30:45", "::", "1:2:3", "face::add()")
    ),
    lambda rng: rng.choice(
        ("@property", "user@localhost", "icon@2x.png", "lodash@4.17.21", "a @ b", "git@github.com:a/b")
    ),
    lambda rng: " ".join(digits(rng, 2) for _ in range(rng.randrange(3, 12))),
    lambda rng: " ".join(f"{rng.randrange(1, 9999)}" for _ in range(6)),
    lambda rng: f"{rng.randrange(1, 999)}x{rng.randrange(1, 999)}x{rng.randrange(1, 99)}",
    lambda rng: rng.choice(
        ("task-oriented-dialogue-systems-2024", "sk-learn", "hf_hub_download", "ghp_token", "AKIA")
    ),
    lambda rng: f"0x{rng.randrange(16**8):08x}",
    lambda rng: (
        f"00{rng.randrange(41, 91)} 03{rng.randrange(100):02d} 03{rng.randrange(100):02d}"
    ),  # code points
    lambda rng: f"{rng.randrange(2, 99)} recursive calls {digits(rng, 7)}",
    lambda rng: rng.choice(("call #", "cell ", "the next call: ")) + digits(rng, 7),
    lambda rng: f"1.0.{rng.randrange(4)}.{rng.randrange(20, 256)}",
    lambda rng: f"{rng.randrange(1, 255)}.{rng.randrange(256)}.168.192.in-addr.arpa",
    lambda rng: f"pp. {rng.randrange(100, 999)}-{rng.randrange(1000, 1999)}",
    lambda rng: f"doi:10.{rng.randrange(1000, 9999)}/{digits(rng, 8)}",
)
MAKERS: dict[str, Callable[[random.Random], str]] = {
    "email": email,
    "phone": phone,
    "ip": ip,
    "iban": iban,
    "credit_card": credit_card,
    "national_id": national_id,
    "secret": secret,
}


@dataclass
class Example:
    """A sentence, and where personal data of which kind stands in it, if any."""

    text: str
    kind: str | None
    start: int
    end: int


def labelled(count: int, seed: int) -> Iterator[Example]:
    """Sentences, every other one with personal data, the kinds in turns."""
    rng, kinds = random.Random(seed), list(MAKERS)
    for number in range(count):
        kind = kinds[number // 2 % len(kinds)] if number % 2 == 0 else None
        label, _, item = (MAKERS[kind](rng) if kind else rng.choice(LOOKALIKES)(rng)).rpartition("|")
        before, after = rng.choice(CARRIERS).split("{}")
        start = len(before) + len(label)
        yield Example(f"{before}{label}{item}{after}", kind, start, start + len(item))
