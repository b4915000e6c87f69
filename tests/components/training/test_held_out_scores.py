"""Laws of scoring in blocks, batches and chunks: the cut changes nothing, a local reference must read the same tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from components.data.training_rows import count_targets
from components.errors import ModelError
from components.models import build_word_tokenizer
from components.training import held_out_scores
from components.training.held_out_scores import Scorer, batches_by_tokens, score_rows
from components.training.reference_columns import local_columns
from tests.conftest import VOCABULARY, Row, build_model, build_rows

ROWS = build_rows(20)
CPU = torch.device("cpu")
WORDS = [f"w{number}" for number in range(VOCABULARY - 7)]
TOKENIZER = build_word_tokenizer(WORDS, 64)


def score(work: Path, precision: str = "fp32", rows: list[Row] = ROWS) -> dict[str, torch.Tensor]:
    scorer = Scorer(build_model, tuple(range(len(rows))))
    return score_rows(rows, [scorer], VOCABULARY, device=CPU, precision=precision, work=work)


def test_batches_hold_every_row_once_and_stay_within_their_tokens() -> None:
    batches = batches_by_tokens([4, 2, 9, 7, 0], ROWS, 30)
    assert sorted(number for batch in batches for number in batch) == [0, 2, 4, 7, 9]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(ROWS[number].input_ids) for number in batch) <= 30
    assert all(len(batch) == 1 for batch in batches_by_tokens(range(20), ROWS, 1))


def test_batches_and_chunks_change_the_scores_by_float_noise_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(tmp_path / "whole")
    monkeypatch.setattr(held_out_scores, "MAX_BATCH_TOKENS", 25)
    monkeypatch.setattr(held_out_scores, "CHUNK_BYTES", 4 * VOCABULARY * 3)
    cut = score(tmp_path / "cut")
    for name, values_N in whole.items():
        torch.testing.assert_close(cut[name], values_N, rtol=0, atol=1e-5)


def test_lower_precision_is_near_and_is_not_the_same(tmp_path: Path) -> None:
    exact, rounded = score(tmp_path / "fp32"), score(tmp_path / "bf16", "bf16")
    gap_N = (exact["reference_nll"] - rounded["reference_nll"]).abs()
    assert gap_N.max() > 0 and gap_N.mean() < 0.1


def test_a_token_that_is_ruled_out_is_told_with_its_row(tmp_path: Path) -> None:
    model = build_model()
    rows = [row for row in ROWS if 49 not in row.input_ids]
    broken = Row([5, 49, 7], [False, False, True])
    with torch.no_grad():
        model.model.embed_tokens.weight[49] = float("nan")
    scorer = Scorer(lambda: model, tuple(range(len(rows) + 1)))
    with pytest.raises(ModelError, match=rf"reference_nll is not finite on row {broken.fingerprint}.*\[5, 49, 7\]"):
        score_rows([*rows, broken], [scorer], VOCABULARY, device=CPU, precision="fp32", work=tmp_path)


def test_rows_without_a_target_take_part_and_leave_nothing(tmp_path: Path) -> None:
    silent = Row(ROWS[1].input_ids, [False] * len(ROWS[1].input_ids))
    rows = [silent, *ROWS[:3], Row([1, 2, 3, 4], [True, False, False, False])]
    columns = score(tmp_path, rows=rows)
    assert len(columns["reference_nll"]) == sum(count_targets(row) for row in ROWS[:3])


# ---- a local reference ----


def save(folder: Path, tokenizer: Any = TOKENIZER, **changes: Any) -> Path:
    build_model(3, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("vocab_size", [VOCABULARY, 64])
def test_a_local_reference_gives_its_own_loss_and_entropy(tmp_path: Path, vocab_size: int) -> None:
    """Embeddings may be padded beyond the tokens."""
    folder = save(tmp_path / "model", vocab_size=vocab_size)
    columns = local_columns(ROWS, folder, TOKENIZER, "fp32", CPU, tmp_path / "work")
    assert columns.keys() == {"reference_nll", "reference_entropy"}
    with torch.no_grad():
        law = build_model(3, vocab_size=vocab_size)(torch.tensor([ROWS[0].input_ids])).logits[0].log_softmax(1)
    first = ROWS[0].is_target.index(True)
    torch.testing.assert_close(columns["reference_nll"][0], -law[first - 1, ROWS[0].input_ids[first]], rtol=0, atol=1e-5)
    torch.testing.assert_close(columns["reference_entropy"][0], -(law.exp() * law)[first - 1].sum(), rtol=0, atol=1e-5)


def test_a_reference_with_other_tokens_is_refused_with_a_token_that_differs(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", build_word_tokenizer([*WORDS[:-1], "other"], 64))
    with pytest.raises(ModelError, match=r"'other' is token 49 there and None here.*token_scores\.reference_path"):
        local_columns(ROWS, folder, TOKENIZER, "fp32", CPU, tmp_path / "work")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"vocab_size": 40}, "vocabulary of 40, the data one of 50"), ({"max_position_embeddings": 8}, "reads 8 positions")],
)
def test_a_reference_that_cannot_read_the_rows_is_refused(tmp_path: Path, changes: dict[str, int], said: str) -> None:
    folder = save(tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=rf"{said}.*token_scores\.reference_path"):
        local_columns(ROWS, folder, TOKENIZER, "fp32", CPU, tmp_path / "work")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds no"):
        local_columns(ROWS, tmp_path, TOKENIZER, "fp32", CPU, tmp_path / "work")
