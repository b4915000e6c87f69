"""Personal data in a text that has a shape of its own: addresses of people, machines and accounts, numbers of documents.

Found are e-mail addresses, telephone numbers, payment cards (Luhn), IBANs (modulo 97), US social security numbers, Chinese
resident numbers (modulo 11), passport numbers beside the word, and public IPv4 addresses. Names, postal addresses and
dates of birth have no shape and are not looked for. Documentation is no person: example.com, 555 numbers, `name@`, reserved
networks, versions. The value never leaves this module: callers get kind and place.
"""

import ipaddress
import re
from collections.abc import Sequence

from components.text_spans import Rule, Span, apart

_PLACEHOLDER_DOMAIN = re.compile(
    r"(?:^|\.)(?:(?:example|test|invalid|localhost|local)(?:\.|$)"
    r"|(?:domain|e-?mail|your\w{0,20}|my\w{0,20}|some\w{0,20}|abcd?|xyz|xxx|website|site|school|university|foo|bar|acme\w{0,10}"
    r"|\w{0,20}company|business|store|host|server|sample|organization|org|provider)\.\w{2,12}$)",
    re.IGNORECASE,
)
_PLACEHOLDER_NAME = re.compile(
    r"(?:x{2,}|your\b.*|your[._-]?\w{0,20}|my[._-]?(?:e?mail|name|address)|user\d{0,3}|username|e?-?mail|name"
    r"|first[._-]?(?:name)?[._-]?last(?:name)?|someone|somebody|me|test\w{0,10}|example\w{0,10}|abc\d{0,3}|foo|bar|git|no-?reply"
    r"|do-?not-?reply|(?:john|jane)\.?(?:doe|smith)\d{0,4}|info|support|contact|sales|admin|help|hello|customer\w{0,10}|service"
    r"|hr|jobs|office|webmaster)$",
    re.IGNORECASE,
)
_FILE_SUFFIXES = frozenset("png jpg jpeg gif svg webp py js ts css html json txt md".split())
_CARD = re.compile(
    r"(?:4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}|62\d{14})$"
)
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ",
    24: "AD CZ ES MD PK RO SA SE SK TN",
    25: "PT",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ CY DO GT HU LB PL",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT",
}
_IBAN_LENGTHS = {country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries.split()}
_PUBLIC_RESOLVERS = frozenset("8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 208.67.222.222 208.67.220.220".split())
_PUBLISHED_SSNS = frozenset(("123-45-6789", "078-05-1120", "219-09-9999"))
_VERSION_BEFORE = re.compile(r"(?:version|ver|release|build|firmware|chapter|section|v)[.: ]{0,2}$", re.IGNORECASE)
_IN_A_ROW = ("0123456789", "9876543210")


def _digits(text: str) -> str:
    return "".join(character for character in text if character in "0123456789")


def _is_card(match: re.Match[str]) -> bool:
    digits = _digits(match[0])
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return bool(_CARD.match(digits)) and sum(value - 9 * (value > 9) for value in doubled) % 10 == 0 and len(set(digits)) > 2


def _is_iban(match: re.Match[str]) -> bool:
    value = match[0].replace(" ", "")[: _IBAN_LENGTHS.get(match[0][:2], 0)]
    number = "".join(str(int(character, 36)) for character in value[4:] + value[:4])
    return len(value) == _IBAN_LENGTHS.get(value[:2]) and int(number) % 97 == 1


def _is_resident_number(match: re.Match[str]) -> bool:
    value = match[0].upper()
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(value[:17]))
    return "10X98765432"[total % 11] == value[17]


def _is_ssn(match: re.Match[str]) -> bool:
    return match[0] not in _PUBLISHED_SSNS and len(set(_digits(match[0]))) > 1


def _is_public_address(match: re.Match[str]) -> bool:
    octets = [int(part) for part in match[0].split(".")]
    if max(octets) > 255 or max(octets) < 10 or octets[3] == 0 or match[0] in _PUBLIC_RESOLVERS:
        return False
    before = match.string[max(match.start() - 12, 0) : match.start()]
    return ipaddress.IPv4Address(bytes(octets)).is_global and not _VERSION_BEFORE.search(before)


def _is_us_phone(match: re.Match[str]) -> bool:
    digits = _digits(match[0])[-10:]
    is_toll_free = digits[:3] in ("800", "888", "877", "866", "855", "844", "833", "900")
    return "555" not in (digits[:3], digits[3:6]) and not is_toll_free and _is_number_of_someone(digits)


def _is_international_phone(match: re.Match[str]) -> bool:
    digits = _digits(match[0])
    if digits[0] == "1" and (len(digits) != 11 or "555" in (digits[1:4], digits[4:7]) or digits[1] in "01"):
        return False
    return 8 <= len(digits) <= 15 and _is_number_of_someone(digits)


def _is_number_of_someone(digits: str) -> bool:
    in_a_row = any(digits[start : start + 6] in row for row in _IN_A_ROW for start in range(len(digits) - 5))
    return len(set(digits)) > 3 and not in_a_row


def _is_email(match: re.Match[str]) -> bool:
    name, _, domain = match[0].partition("@")
    suffix = domain.rpartition(".")[2].lower()
    is_placeholder = _PLACEHOLDER_DOMAIN.search(domain) or _PLACEHOLDER_NAME.match(name)
    return not is_placeholder and suffix not in _FILE_SUFFIXES


def _pattern(pattern: str) -> re.Pattern[str]:
    """ASCII letters and digits: a number stands alone although a Chinese character touches it."""
    return re.compile(pattern, re.ASCII)


RULES = (
    Rule(
        "iban", (), _pattern(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"), _is_iban
    ),
    Rule(
        "credit_card",
        (),
        _pattern(r"(?<![\w.-])\d{4}(?:([ -]?)\d{4}\1\d{4}\1\d{1,7}|([ -]?)\d{6}\2\d{5})(?![\w-]|\.\d)"),
        _is_card,
    ),
    Rule(
        "national_id",
        (),
        _pattern(r"(?<![\w.-])[1-9]\d{5}(?:19|20)\d{2}(?:0\d|1[0-2])[0-3]\d{4}[\dXx](?![\w-])"),
        _is_resident_number,
    ),
    Rule("us_ssn", (), _pattern(r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"), _is_ssn),
    Rule("ip_address", (), _pattern(r"(?<![\w.])(?:(?:0|[1-9]\d{0,2})\.){3}(?:0|[1-9]\d{0,2})(?![\w]|\.\d)"), _is_public_address),
    Rule(
        "passport",
        (),
        _pattern(r"(?i:passport|护照)[^\d\n]{0,24}?(?<![A-Za-z0-9])(?P<value>[A-Z]{1,2}\d{6,8}|\d{9})(?![A-Za-z0-9])"),
        lambda match: _is_number_of_someone(_digits(match["value"])),
        group="value",
    ),
    Rule(
        "phone",
        (),
        _pattern(r"(?<![\w.+/-])(?:\+?1[ .-]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?![\w-]|\.\d)"),
        _is_us_phone,
    ),
    Rule(
        "phone",
        (),
        _pattern(r"(?<![\w+.,=&/-])(?<!\d )(?:\+[1-9]\d{0,2}|00[1-9]\d{0,2}[ .-])(?:[ .-]?\(?\d{1,5}+\)?){2,6}+(?![\w-])"),
        _is_international_phone,
    ),
    Rule(
        "phone",
        (),
        _pattern(
            r"(?:(?i:phone|mobile|whatsapp|telephone|cell|\btel\b|\bcall)|电话|手机|微信)[^\d\n]{0,16}"
            r"(?P<value>(?<!\d)(?:1[3-9]\d{9}|[2-9]\d{2}[2-9]\d{6}|0\d{2,3}-\d{7,8}))(?![\w-])"
        ),
        lambda match: _is_us_phone(match) if len(match["value"]) == 10 else _is_number_of_someone(match["value"]),
        group="value",
    ),
)
EMAIL = Rule(
    "email",
    ("@",),
    _pattern(r"(?<![\w.%+/-])[A-Za-z0-9_][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
    _is_email,
)
_MANY_DIGITS = re.compile(r"\d(?:[ ().-]{0,2}[\dA-Z]){6}")
"""Every rule but the one of e-mail needs this: seven digits (an IBAN has letters) with hardly anything between them."""
_NUMBERS_OF_ADDRESS = re.compile(r"\d\.\d{1,3}\.\d")


def find_personal_data(text: str, taken: Sequence[Span] = ()) -> list[Span]:
    """Everything of a text that points at a person, in order of place; not where a secret was found (`taken`)."""
    spans = EMAIL.spans(text) if "@" in text else []
    if _MANY_DIGITS.search(text) or _NUMBERS_OF_ADDRESS.search(text):
        spans += [span for rule in RULES for span in rule.spans(text)]
    return apart(spans, taken) if spans else spans
