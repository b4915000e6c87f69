"""Laws of the search for personal data: planted data is found at its place, documentation and mathematics are not."""

import time

import pytest

from components.data_contract.personal_data import EMAIL, RULES, find_personal_data
from components.text_spans import Span, apart

PLANTED = {
    "email": "anna.kowalska@posteo.net",
    "email tag": "j_smith+news@mail.uni-koeln.de",
    "phone us": "(212) 867-5309",
    "phone us dots": "415.867.5309",
    "phone us country": "+1 415-867-5309",
    "phone international": "+44 20 7946 0958",
    "phone german": "+49 (0)89 63648018",
    "phone compact": "+4915223433333",
    "phone zero": "0033 6 39 98 17 55",
    "credit_card": "4539 1488 0343 6467",
    "credit_card compact": "5425233430109903",
    "credit_card amex": "3782-822463-10005",
    "iban": "DE89 3704 0044 0532 0130 00",
    "iban compact": "GB29NWBK60161331926819",
    "us_ssn": "536-90-4399",
    "ip_address": "84.172.33.19",
    "national_id": "11010519491231002X",
}
BESIDE_A_WORD = {
    "passport": ("Passport No: ", "C03005988"),
    "passport zh": ("护照号码：", "E19283746"),
    "phone": ("phone: ", "2128675309"),
    "phone zh": ("我的手机是", "13912873465"),
}
NO_DATA = [
    "Write to info@example.com or john@test.org, or name@domain.com.",
    "mail xxx@gmail.com, your.name@gmail.com and [email]@company.com",
    "icon@2x.png and git@github.com:user/repo.git",
    "@app.route('/') def f(): pass  # see https://medium.com/@someone",
    "Call 555-0142, (555) 867-5309 or 212-555-0187.",
    "Call 1-800-362-0101 for help, or 123-456-7890.",
    "+1234567890",
    "The numbers 1234567890, 0987654321 and 3141592653 are long.",
    "It has a measured value of 0.0072973525693 with some error",
    "https://news.example.co.kr/view.asp?arcid=0018079761",
    "4539 1488 0343 6468 fails the check, as 1234 5678 9012 3456 does",
    "0000 0000 0000 0000",
    "DE89 3704 0044 0532 0130 01",
    "123-45-6789 and 000-12-3456 and 987-65-4320",
    "version 84.172.33.19, v12.13.14.15, section 11.12.13.14",
    "192.168.0.1, 127.0.0.1, 10.1.2.3, 203.0.113.7, 255.255.255.0, 8.8.8.8, 1.2.3.4, 300.1.2.3",
    "from 2019-11-25 to 2020-12-31 at 10:30:00",
    "48 / 2 = <<48/2=24>>24 and 1,000,000 - 250,000 = 750,000",
    "978-3-16-148410-0 is an ISBN; 20230415123045 is a time",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
    "Your passport must be valid for 6 months. Apply 123 days before.",
]


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("around", ["{}", "Reach me at {}, please.", "请联系{}。"])
def test_planted_data_is_found_once_with_its_kind_and_place(name: str, around: str) -> None:
    text = around.format(PLANTED[name])
    start = text.index(PLANTED[name])
    assert find_personal_data(text) == [Span(name.split()[0], start, start + len(PLANTED[name]))]


@pytest.mark.parametrize("name", BESIDE_A_WORD)
def test_a_bare_number_is_found_beside_the_word_only(name: str) -> None:
    word, number = BESIDE_A_WORD[name]
    assert find_personal_data(word + number) == [Span(name.split()[0], len(word), len(word) + len(number))]
    assert find_personal_data("number " + number) == []


@pytest.mark.parametrize("text", NO_DATA)
def test_documentation_and_mathematics_are_nobody(text: str) -> None:
    assert find_personal_data(text) == []


def test_what_follows_a_number_does_not_hide_it() -> None:
    assert [span.kind for span in find_personal_data("Card 4539148803436467 12/27 911, IBAN DE89370400440532013000 BANK")] == [
        "credit_card",
        "iban",
    ]


def test_the_password_of_an_address_is_no_email() -> None:
    text = "ftp://root:tr0ub4dor@files.posteo.net"
    assert [span.kind for span in find_personal_data(text)] == ["email"]
    assert find_personal_data(text, [Span("url_with_password", 0, 22)]) == []


def test_overlapping_finds_are_one_and_the_first_rule_names_it() -> None:
    spans = [Span("a", 5, 9), Span("b", 5, 12), Span("c", 0, 3), Span("d", 8, 10), Span("e", 12, 14)]
    assert [span.kind for span in apart(spans)] == ["c", "a", "e"]
    assert [span.kind for span in apart(spans, [Span("taken", 2, 6)])] == ["d", "e"]


HOSTILE = [
    "1" * 200_000,
    "+1" * 100_000,
    "+" + "1" * 30 + "x",
    ("+" + "1" * 29 + "x") * 6000,
    "1 " * 100_000,
    "1-" * 100_000,
    "1." * 100_000,
    "(212) " * 30_000,
    "4539 1488 0343 " * 12_000,
    "AB12 " * 40_000,
    "AB12" + "A1B2 " * 40_000,
    "a" * 200_000 + "@",
    "a@" * 100_000,
    "a@" + "a." * 100_000,
    "a@" + "a-" * 100_000,
    "a.b@c.d" * 30_000,
    "passport " * 20_000,
    "phone: " * 20_000,
    "212-867-5309 " * 15_000,
    "a.b@posteo.net " * 12_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_text_takes_linear_time(text: str) -> None:
    start = time.process_time()
    for rule in (*RULES, EMAIL):
        rule.spans(text)
    find_personal_data(text)
    assert time.process_time() - start < 3
