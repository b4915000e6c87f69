"""Laws of the search for encoding faults: damage is found at its place, the writing systems of the world are no damage."""

import random
import time
import unicodedata

import pytest

from components.data_contract.encoding_faults import find_encoding_faults
from components.text_spans import Span

FAULTS = {
    "mojibake": ["It\u00e2\u20ac\u2122s fine", "caf\u00c3\u00a9 au lait", "\u00d0\u009f\u00d1\u0080\u00d0\u00b8", "锟斤拷锟斤拷"],
    "replacement_character": ["caf\ufffd", "\ufffd"],
    "control_character": ["a\x00b", "a\x0bb", "a\x7fb", "beep \x07", "a\x1b[31mred"],
    "byte_order_mark": ["\ufeffHello", "one\ufefftwo"],
    "bidi_control": ["access = 'user\u202e \u2066// admin\u2069'", "abc \u2066open", "\u202bשלום"],
    "zero_width": ["pass\u200bword", "wo\u200drd", "a\u200c\u200d\u200cb", "hello\u2060world", "hi\U000e0041\U000e0042"],
    "private_use": ["\ue000", "logo \uf8ff", "\U0010fffd"],
    "surrogate": ["x\ud800y"],
    "unassigned": ["\u0378", "\uffff", "\ufdd0"],
}
SOUND = [
    "",
    "Plain text.\r\n\tWith tabs, “quotes” – dashes… and a no-break\u00a0space.",
    "naïve façade, Ångström, Straße, œuvre, ¿qué?, 25 °C, ½ cup, 3 × 4, €5, £3, ©2020, «voilà»",
    "今天天气很好，“我们”去公园吧。全角ＡＢＣ",
    "日本語のテキスト、カタカナ。한국어 텍스트.",
    "Привет, как дела? Всё хорошо — спасибо.",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "می\u200cخواهم کتاب\u200cها را بخوانم",
    "שלום עולם \u200f(1)\u200e",
    "שלום \u2068John\u2069 עולם",
    "क\u094d\u200dष and क\u094d\u200cष, ශ\u0dca\u200dරී",
    "ภาษา\u200bไทย",
    "👩\u200d👩\u200d👧\u200d👦 ❤\ufe0f\u200d🔥 👍🏽 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "🇩🇪 🏳\ufe0f\u200d🌈",
    "\U0001fae8 \U0001fae9 are faces that came after this Python",
    "f\u2061(x) = 2\u2062x",
    "│ a │ b │\n├───┼───┤\n└───┴───┘",
    "Việt Nam, tiếng Việt; e\u0301 decomposed; co\u00adop",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FAULTS.items() for text in texts])
def test_a_fault_is_found_with_its_kind(kind: str, text: str) -> None:
    assert kind in {fault.kind for fault in find_encoding_faults(text)}


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_of_any_script_has_no_fault(text: str) -> None:
    assert find_encoding_faults(text) == []


def test_every_control_character_but_three_is_a_fault() -> None:
    controls = [chr(codepoint) for codepoint in (*range(0x20), *range(0x7F, 0xA0))]
    sound = {control for control in controls if not find_encoding_faults(f"a {control} b")}
    assert sound == {"\t", "\n", "\r"}


def test_neighbours_of_one_kind_are_one_fault_and_places_are_in_order() -> None:
    faults = find_encoding_faults("ab\ufffd\ufffdc\x00\ufffd")
    assert faults == [
        Span("replacement_character", 2, 4),
        Span("control_character", 5, 6),
        Span("replacement_character", 6, 7),
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_utf8_read_as_another_encoding_is_found(encoding: str) -> None:
    for text in ("Señor Muñoz está aquí", "L’été à la plage", "Größe: 5 µm", "“quoted” text"):
        try:
            damaged = text.encode().decode(encoding)
        except UnicodeDecodeError:
            continue
        assert find_encoding_faults(damaged), damaged.encode("unicode_escape")
        assert not find_encoding_faults(text)


def test_the_short_cut_hides_no_mojibake() -> None:
    from ftfy.badness import BADNESS_RE

    rng = random.Random(0)
    letters = [chr(codepoint) for codepoint in (*range(0x20, 0x250), *range(0x391, 0x460), *range(0x2010, 0x2265))]
    letters = [letter for letter in letters if unicodedata.category(letter) not in ("Cc", "Cn")]
    num_bad = 0
    for _ in range(5000):
        text = "".join(rng.choices(letters, k=4))
        num_bad += bool(BADNESS_RE.search(text))
        assert bool(BADNESS_RE.search(text)) == any(fault.kind == "mojibake" for fault in find_encoding_faults(text))
    assert num_bad > 100


@pytest.mark.parametrize(
    "unit", ["\ufffd", "\u202e", "\u200b", "\u2066\n", "a\u200d", "\U000e0041", "\u00c3\u00a9", "锟斤拷", "\x00a", "\u2066"]
)
def test_hostile_text_takes_linear_time(unit: str) -> None:
    start = time.process_time()
    find_encoding_faults(unit * 100_000)
    assert time.process_time() - start < 5
