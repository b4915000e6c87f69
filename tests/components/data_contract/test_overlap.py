"""Laws of overlap: what was planted is found, what is clean stays clean, and only meaning makes texts differ."""

import random
import unicodedata

import pytest

from components.data_contract.overlap import OverlapIndex, units
from tests.components.data_contract.conftest import ngrams

VOCABULARY = [f"w{index}" for index in range(5000)]
QUESTION = "a farmer has twelve hens and each hen lays two eggs every day how many eggs does he sell in a week"


def draw(rng: random.Random, num_words: int) -> list[str]:
    return rng.choices(VOCABULARY, k=num_words)


def held_out(rng: random.Random, num_items: int = 200) -> dict[str, list[str]]:
    return {f"ood.json:{index}": draw(rng, rng.choice((3, 8, 13, 40, 90))) for index in range(num_items)}


def index_of(items: dict[str, list[str]]) -> OverlapIndex:
    return OverlapIndex(list(items), [" ".join(words) for words in items.values()])


def test_an_ngram_has_at_least_one_word() -> None:
    with pytest.raises(ValueError, match="n=0"):
        OverlapIndex([], [], n=0)


def test_a_script_without_spaces_falls_back_to_characters() -> None:
    assert ngrams("今天天气很好。", 5) == ["今 天 天 气 很", "天 天 气 很 好"]
    assert units("用 Python 写") == ["用", "python", "写"]
    sentence = "小明有十二个苹果，他给了小红五个，请问他现在还剩下几个苹果？"
    assert OverlapIndex(["zh"], [sentence]).find("请回答：" + sentence[3:22]) == ["zh"]


@pytest.mark.parametrize(
    "variant",
    [
        QUESTION.upper(),
        QUESTION.replace(" ", "\n\t "),
        QUESTION.replace("hens and", "hens, and") + "?",
        QUESTION.replace("twelve", "twe\u00adlve").replace("hens", "\u200bhens"),
        "".join(chr(ord(letter) + 0xFEE0) if letter.isalpha() else letter for letter in QUESTION),
    ],
    ids=["case", "whitespace", "punctuation", "invisible", "full-width"],
)
def test_case_whitespace_punctuation_and_unicode_form_hide_nothing(variant: str) -> None:
    assert variant != QUESTION
    assert units(variant) == units(QUESTION)
    assert OverlapIndex(["gsm8k:1"], [QUESTION]).find(variant) == ["gsm8k:1"]


def test_composed_and_decomposed_letters_are_one() -> None:
    assert units(unicodedata.normalize("NFD", "Café ÅNGSTRÖM")) == units(unicodedata.normalize("NFC", "café ångström"))


def test_arithmetic_is_not_punctuation() -> None:
    questions = ["what is 7 - 3", "what is 7 * 3", "what is 7 / 3", "what is 7 + 3", "what is 7.3", "what is -7 3", "what is 7 3"]
    assert len({tuple(units(question)) for question in questions}) == len(questions)
    assert units("What is 7-3?") == units("what is 7 - 3")
    assert units("is 3+4 7") == units("is 3 + 4 7")


def test_every_planted_ngram_is_found_at_any_place_of_any_text() -> None:
    rng = random.Random(0)
    items = held_out(rng)
    index = index_of(items)
    long_items = {name: words for name, words in items.items() if len(words) >= 13}
    for name, words in long_items.items():
        start = rng.randint(0, len(words) - 13)
        text = [*draw(rng, rng.randint(0, 30)), *words[start : start + 13], *draw(rng, rng.randint(0, 30))]
        assert name in index.find(" ".join(text))


def test_every_short_item_is_found_as_a_whole_and_only_as_a_whole() -> None:
    index = OverlapIndex(["short"], ["Copy s1, s2, s3!"])
    assert index.find("copy s1 s2 s3") == ["short"]
    assert index.find("copy s1 s2") == []
    assert index.find("please copy s1 s2 s3") == []


def test_a_clean_split_gives_no_overlap() -> None:
    rng = random.Random(1)
    index = index_of(held_out(rng))
    assert not any(index.find(" ".join(draw(rng, rng.randint(1, 200)))) for _ in range(500))


def test_twelve_shared_words_are_not_thirteen() -> None:
    words = QUESTION.split()
    index = OverlapIndex(["item"], [QUESTION])
    assert index.find(" ".join(["other", *words[4:16], "words"])) == []
    assert index.find(" ".join(["other", *words[4:17], "words"])) == ["item"]


def test_the_order_of_words_counts() -> None:
    words = QUESTION.split()[:13]
    index = OverlapIndex(["item"], [" ".join(words)])
    for first in range(12):
        for second in range(first + 1, 13):
            swapped = list(words)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            assert index.find(" ".join(swapped)) == ([] if swapped != words else ["item"])


def test_find_agrees_with_a_search_in_sets_of_strings() -> None:
    rng = random.Random(2)
    few = VOCABULARY[:3]  # so few words that overlaps abound
    items = {f"item{index}": " ".join(rng.choices(few, k=rng.randint(1, 9))) for index in range(60)}
    index = OverlapIndex(list(items), list(items.values()), n=5)
    keys = {name: set(ngrams(text, 5)) or {text} for name, text in items.items()}
    for _ in range(300):
        text = " ".join(rng.choices(few, k=rng.randint(1, 9)))
        assert index.find(text) == [name for name in items if keys[name] & (set(ngrams(text, 5)) or {text})]


def test_all_items_that_share_the_text_are_named_once_in_the_order_given() -> None:
    index = OverlapIndex(["z", "a", "z", "b"], [QUESTION, QUESTION + " more", QUESTION + " again", "nothing"])
    assert index.find(QUESTION) == ["z", "a"]


def test_a_text_without_words_matches_nothing() -> None:
    index = OverlapIndex(["empty", "dots"], ["", " ... "])
    assert len(index) == 0
    assert index.find("...") == index.find("") == index.find(QUESTION) == []
    assert OverlapIndex([], []).find(QUESTION) == []


def test_a_lone_surrogate_is_a_letter_like_another() -> None:
    assert OverlapIndex(["broken"], ["x\ud800y z"]).find("X\ud800Y  z") == ["broken"]


def test_every_text_needs_an_id() -> None:
    with pytest.raises(ValueError, match="1 ids, 2 texts"):
        OverlapIndex(["a"], ["b", "c"])


def test_the_index_holds_twelve_bytes_for_each_ngram() -> None:
    index = OverlapIndex(["item"], [QUESTION])
    num_ngrams = len(QUESTION.split()) - 12
    assert len(index) == num_ngrams
    assert index._hashes.nbytes + index._owners.nbytes == 12 * num_ngrams


def test_an_ngram_that_many_items_share_is_their_template_and_names_none_of_them() -> None:
    template = "please answer the following question about prices as briefly as you possibly can and then stop"
    texts = [f"{template} item {number} costs {number + 7} coins today and {number} tomorrow at noon" for number in range(30)]
    names = [f"test:{number}" for number in range(30)]
    assert len(OverlapIndex(names, texts).find(template)) == 30
    index = OverlapIndex(names, texts, max_ids=10)
    assert index.find(template) == []
    assert index.find(texts[3]) == ["test:3"]


def test_planted_leaks_are_all_found_and_a_clean_split_has_none() -> None:
    rng = random.Random(5)
    items = {f"item{number}": draw(rng, rng.randint(13, 60)) for number in range(300)}
    index = index_of(items)
    for name, words in items.items():
        start = rng.randint(0, len(words) - 13)
        inside = " ".join([*draw(rng, 20), *words[start : start + 13], *draw(rng, 20)])
        edited = ", ".join(words).upper().replace("W", "\u200bＷ") + "!"
        assert name in index.find(" ".join(words)) and name in index.find(inside) and name in index.find(edited)
    assert not any(index.find(" ".join(draw(rng, 60))) for _ in range(2000))


def test_the_sieve_hides_nothing_from_a_large_index() -> None:
    rng = random.Random(6)
    items = {f"item{number}": draw(rng, 60) for number in range(3000)}
    index = index_of(items)
    assert all(name in index.find(" ".join(words)) for name, words in items.items())


def test_arithmetic_inside_an_answer_is_no_leak_and_a_set_of_arithmetic_still_is() -> None:
    answer = "He sold 48 / 2 = <<48/2=24>>24 clips in May to all of his very best friends at the small school in town."
    index = OverlapIndex(["answer", "sum"], [answer, "(9 + 3) * 2 - 4 / 2 + 8 * 1 - 7 ="])
    assert index.find("She baked 48 / 2 = <<48/2=24>>24 cakes.") == []
    assert index.find("All in all " + answer) == ["answer"]
    assert index.find("what is (9+3)*2-4/2+8*1-7=") == ["sum"]
