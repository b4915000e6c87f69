"""Texts that the base writes by itself: how likely a student still finds them says how much of the base is left.

They stand for the text that the base was trained on, which nobody has. A student's nll on them minus the base's own estimates
KL(base || student) over whole texts. Drawn once and kept, so that every model is scored on the same tokens.
"""

from typing import TYPE_CHECKING, Any

from components.artifacts import BASE_TEXT, read_json
from components.errors import ArtifactError
from components.evaluation.generation import sample_texts
from components.evaluation.items import EvaluationItem, EvaluationSet, ItemRow, start_token
from components.params import BaseTextParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_base_text(
    base: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", params: BaseTextParams, base_fingerprint: str
) -> dict[str, Any]:
    """What artifacts/base_text.json holds: the texts, each as the token ids after the begin of sequence."""
    base.eval()
    texts = sample_texts(base, start_token(tokenizer), num_texts=params.num_texts, num_tokens=params.num_tokens, seed=params.seed)
    return {"texts": texts, "seed": params.seed, "base_fingerprint": base_fingerprint}


def read_base_text(tokenizer: "PreTrainedTokenizerBase") -> EvaluationSet:
    """The texts as items, every token a target; empty where base_text.num_texts is 0."""
    kept = read_json(BASE_TEXT, made_by="sample_base")
    try:
        texts = [[int(token) for token in text] for text in kept["texts"]]
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{BASE_TEXT} holds no texts. Make it again with: dvc repro -f -s sample_base") from None
    begin = start_token(tokenizer)
    rows = [ItemRow([begin, *text], [False] + [True] * len(text)) for text in texts]
    return EvaluationSet(EvaluationItem(f"base_text:{number}", "tokens", (row,)) for number, row in enumerate(rows, start=1))
