"""Does decoding give back what was encoded? Proven once per tokenizer where its parts allow it, decided per row where not.

Byte-level BPE (GPT-2, LLaMA 3, Qwen) and BPE with byte fallback (LLaMA 2, Gemma) have a token for each byte, so tokens that
cover a text decode to it. A normaliser, an unknown token or a vocabulary of words loses characters, in some rows and not in
others: there the targets are decoded and compared.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_BOUNDARY = "▁"
"""Stands for a space in sentencepiece vocabularies, so a text that has it of its own loses it."""
PROBE = "a  b \n\n a"
KEEPING_SPLITS = frozenset({"Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"})
Part = dict[str, Any]


@dataclass(frozen=True)
class RoundTrip:
    """`lossy_characters`: a text without these comes back for certain; None: nothing is certain.
    `keeps_blanks`: False where a tokenizer knows words only, and what stands between them is not kept."""

    lossy_characters: str | None
    keeps_blanks: bool

    def is_certain(self, text: str) -> bool:
        return self.lossy_characters is not None and not any(character in text for character in self.lossy_characters)

    def comparable(self, text: str) -> str:
        """What must come back: templates and word boundaries take blanks at the ends."""
        return text.strip() if self.keeps_blanks else "".join(text.split())


def round_trip(tokenizer: "PreTrainedTokenizerBase") -> RoundTrip:
    return _round_trip(tokenizer, len(tokenizer))


def most_characters(tokenizer: "PreTrainedTokenizerBase", num_tokens: int) -> int:
    """More characters than these have more than `num_tokens` tokens for certain: as many as its longest token would cover.
    No bound where a tokenizer may lose characters."""
    if round_trip(tokenizer).lossy_characters is None:
        return sys.maxsize
    return num_tokens * _longest_token(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _longest_token(tokenizer: "PreTrainedTokenizerBase", num_tokens: int) -> int:
    """Characters of the vocabulary's longest entry. One of bytes is spelled with a character or more for each byte."""
    return max(map(len, tokenizer.get_vocab()))


@lru_cache(maxsize=8)
def _round_trip(tokenizer: "PreTrainedTokenizerBase", num_tokens: int) -> RoundTrip:
    backend = tokenizer.backend_tokenizer
    lossy = None
    if all(_leaves_text_alone(token) for token in tokenizer.added_tokens_decoder.values()):
        if _is_byte_level(backend):
            lossy = ""
        elif _falls_back_to_bytes(backend):
            lossy = WORD_BOUNDARY
    decoded = backend.decode(backend.encode(PROBE, add_special_tokens=False).ids, skip_special_tokens=False)
    return RoundTrip(lossy, PROBE in decoded)


def _leaves_text_alone(token: Any) -> bool:
    """It does not swallow the blanks beside it, and one that a text may spell decodes to itself."""
    decodes = token.special or (token.content.isascii() and not token.content.startswith("<0x"))
    return bool(decodes and not (token.lstrip or token.rstrip))


def _is_plain_bpe(model: Any) -> bool:
    return type(model).__name__ == "BPE" and not (model.continuing_subword_prefix or model.end_of_word_suffix or model.dropout)


def _is_byte_level(backend: Any) -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    splits = list(_members(backend.pre_tokenizer, "pretokenizers"))
    return (
        _is_plain_bpe(backend.model)
        and all(backend.model.token_to_id(letter) is not None for letter in ByteLevel.alphabet())
        and backend.normalizer is None
        and [part["type"] for part in _members(backend.decoder, "decoders")] == ["ByteLevel"]
        and bool(splits)
        and splits[-1]["type"] == "ByteLevel"
        and not splits[-1]["add_prefix_space"]
        and all(_only_splits(part) for part in splits[:-1])
    )


def _falls_back_to_bytes(backend: Any) -> bool:
    """Decoding undoes what encoding does to spaces; a space more or less at the beginning is not counted."""
    model = backend.model
    decoders = list(_members(backend.decoder, "decoders"))
    return (
        _is_plain_bpe(model)
        and bool(model.byte_fallback)
        and not model.ignore_merges
        and all(model.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
        and all(_marks_spaces(part) for part in _members(backend.normalizer, "normalizers"))
        and all(_only_splits(part) or _is_metaspace(part) for part in _members(backend.pre_tokenizer, "pretokenizers"))
        and len(decoders) > 1
        and (_is_replacement(decoders[0], WORD_BOUNDARY, " ") or _is_metaspace(decoders[0]))
        and [part["type"] for part in decoders[1:3]] in (["ByteFallback"], ["ByteFallback", "Fuse"])
        and all(part["type"] == "Strip" and part["content"] == " " for part in decoders[3:])
    )


def _marks_spaces(part: Part) -> bool:
    return _is_replacement(part, " ", WORD_BOUNDARY) or (part["type"] == "Prepend" and part["prepend"] == WORD_BOUNDARY)


def _is_replacement(part: Part, old: str, new: str) -> bool:
    return bool(part["type"] == "Replace" and part["pattern"] == {"String": old} and part["content"] == new)


def _is_metaspace(part: Part) -> bool:
    return bool(part["type"] == "Metaspace" and part["replacement"] == WORD_BOUNDARY)


def _only_splits(part: Part) -> bool:
    if part["type"] in ("Split", "Punctuation"):
        return part["behavior"] in KEEPING_SPLITS
    return bool(part["type"] == "Digits")


def _members(component: Any, name: str) -> Iterator[Part]:
    """The parts of a sequence of them, or the one; read from the component alone, for the vocabulary takes long to write out."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()), name)


def _flat(part: Part, name: str) -> Iterator[Part]:
    if part["type"] == "Sequence":
        for member in part[name]:
            yield from _flat(member, name)
    else:
        yield part
