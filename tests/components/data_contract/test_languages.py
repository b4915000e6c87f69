"""Laws of the language of a text: prose is told, code and scraps are not guessed at, groups are one language."""

import pytest

from components.data_contract.languages import language_of

PROSE = {
    "en": "One technique is cognitive restructuring, which helps people to identify and challenge distorted thoughts.",
    "de": "Die Hauptstadt von Deutschland ist Berlin, und dort leben mehr als drei Millionen Menschen.",
    "fr": "La capitale de la France est Paris, une ville célèbre pour ses musées et sa cuisine.",
    "es": "La capital de España es Madrid, una ciudad conocida por sus museos y su vida nocturna.",
    "pt": "A capital de Portugal é Lisboa, uma cidade conhecida pelos seus bairros antigos e pela música.",
    "it": "La capitale d'Italia è Roma, una città famosa per i suoi monumenti e per la cucina.",
    "nl": "De hoofdstad van Nederland is Amsterdam, maar de regering zetelt in Den Haag.",
    "pl": "Stolicą Polski jest Warszawa, w której mieszka prawie dwa miliony ludzi.",
    "ru": "Столица России — Москва, в ней живут более двенадцати миллионов человек.",
    "zh": "今天天气很好，我们去公园散步，然后一起吃饭。",
    "ja": "今日は天気がいいので、公園へ散歩に行きました。",
    "ko": "오늘은 날씨가 좋아서 공원에 산책하러 갔습니다.",
    "ar": "عاصمة مصر هي القاهرة، وهي من أكبر المدن في أفريقيا.",
    "he": "בירת ישראל היא ירושלים, והיא עיר עתיקה מאוד עם היסטוריה ארוכה.",
    "hi": "भारत की राजधानी नई दिल्ली है और यह एक बहुत बड़ा शहर है।",
    "th": "เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร ซึ่งเป็นเมืองที่ใหญ่ที่สุด",
    "tr": "Türkiye'nin başkenti Ankara'dır, ancak en kalabalık şehri İstanbul'dur.",
    "vi": "Thủ đô của Việt Nam là Hà Nội, một thành phố có lịch sử lâu đời.",
}
TOO_LITTLE = [
    "",
    "42",
    "#### 1,234",
    "ok",
    "3 + 4 = 7, 5 * 6 = 30, 100 / 4 = 25",
    "😀😀😀😀😀😀😀😀",
    "https://example.com/some/long/path/of/words",
    "...",
    "a b c d",
]
CODE = [
    "```python\ndef quick_sort(arr):\n    return sorted(arr)\n```",
    "def f(x):\n    y = x + 1\n    return y\n\nfor i in range(10):\n    print(f(i))",
    "<div class='box'>\n<p>{{ item.title }}</p>\n</div>",
    "SELECT name, count(*) FROM users WHERE age > 30 GROUP BY name;",
    '#include <stdio.h>\nint main() {\n  printf("%d", x);\n  return 0;\n}',
    "const a = [1, 2, 3];\nlet sum = a.reduce((x, y) => x + y, 0);\nconsole.log(sum);",
]


@pytest.mark.parametrize("language", PROSE)
def test_prose_is_told(language: str) -> None:
    assert language_of([PROSE[language]]) == language


@pytest.mark.parametrize("text", TOO_LITTLE)
def test_a_text_that_says_too_little_has_no_language(text: str) -> None:
    assert language_of([text]) == ""


@pytest.mark.parametrize("code", CODE)
def test_code_is_no_language_and_does_not_change_that_of_the_prose_around_it(code: str) -> None:
    assert language_of([code]) in ("", "en")
    for language in ("en", "de", "zh", "ru"):
        assert language_of([PROSE[language], code]) == language


def test_written_chinese_is_one_language() -> None:
    assert language_of(["侬今朝到啥地方去，阿拉一道去白相"]) in ("zh", "")
    assert language_of(["佢哋今日去咗邊度食飯呀，我哋都想去"]) in ("zh", "")


def test_one_long_turn_does_not_outvote_the_others_for_ever() -> None:
    assert language_of([PROSE["de"]] * 3) == language_of([PROSE["de"] * 1000]) == "de"
