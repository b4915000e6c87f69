"""Laws of importing: a teacher's stored top K trains as its own capture does; what is missing or unknown is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from components.cache_interchange.foreign import read_foreign
from components.cache_interchange.import_laws import import_cache
from components.errors import CacheMismatchError, DataError
from components.objectives.presets import PRESETS
from components.teacher_cache.encoding import STATISTICS
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.shard_plan import CaptureSettings
from tests.components.training.conftest import ROWS, post_train
from tests.conftest import VOCABULARY, Row, build_cache, build_identity, build_model

TOP_K = 12


def as_vllm(rows: list[Row], model: Any, top_k: int = TOP_K, *, ranks: bool = True) -> list[dict[str, Any]]:
    """What vLLM tells of these rows: the top K, and the realised token beside it."""
    found = []
    for row in rows:
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(1)
        entries: list[Any] = [None]
        for logprobs_V, label in zip(logprobs_TV, row.input_ids[1:], strict=True):
            order = logprobs_V.argsort(descending=True).tolist()
            kept = dict.fromkeys([*order[:top_k], label])
            entries.append(
                {
                    str(token): {"logprob": float(logprobs_V[token]), **({"rank": order.index(token) + 1} if ranks else {})}
                    for token in kept
                }
            )
        found.append({"prompt_token_ids": row.input_ids, "prompt_logprobs": entries})
    return found


def import_rows(folder: Path, records: list[dict[str, Any]], rows: list[Row] = ROWS, **identity: Any) -> TeacherCacheReader:
    folder.mkdir(exist_ok=True)
    (folder / "laws.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    wanted = build_identity(source="vllm", **{"max_entries": 64, "tail_mass": 0.0, "positions": "all", **identity})
    import_cache(
        read_foreign(folder / "laws.jsonl", VOCABULARY),
        rows,
        wanted,
        CaptureSettings(200, 60),
        VOCABULARY,
        target=folder / "cache",
        work=folder / "work",
    )
    return TeacherCacheReader(folder / "cache", wanted)


def test_imported_laws_are_those_of_a_capture_as_far_as_they_tell(tmp_path: Path) -> None:
    model = build_model()
    own = build_cache(tmp_path / "own", model, ROWS, max_entries=TOP_K, positions="all")
    imported = import_rows(tmp_path / "imported", as_vllm([*ROWS[::-1], Row([3, 4, 5], [False, True, True])], model))
    assert len(imported.manifest.shards) > 2, "constant memory: several shards"
    assert imported.knows("label_logprob", "label_rank") and not imported.knows("entropy")
    for row in ROWS:
        num_tokens = len(row.input_ids) - 1
        ours, theirs = own.read(row.fingerprint, num_tokens), imported.read(row.fingerprint, num_tokens)
        assert torch.equal(ours["entry_ids"], theirs["entry_ids"][:, :TOP_K])
        torch.testing.assert_close(ours["entry_logprobs"], theirs["entry_logprobs"][:, :TOP_K], rtol=0, atol=5e-3)
        torch.testing.assert_close(ours["label_logprob"], theirs["label_logprob"], rtol=0, atol=1e-4)
        assert torch.equal(ours["label_rank"], theirs["label_rank"])
        assert theirs["entropy"].isnan().all()


def test_a_training_on_imported_laws_is_close_to_one_on_a_capture(tmp_path: Path) -> None:
    model = build_model()
    own = build_cache(tmp_path / "own", model, ROWS, max_entries=TOP_K, positions="all")
    imported = import_rows(tmp_path / "imported", as_vllm(ROWS, model))
    losses = [
        post_train(tmp_path / name, PRESETS["sft_kl"], cache).curve[-1]["loss"] for name, cache in (("a", own), ("b", imported))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_laws_without_ranks_or_labels_say_so_and_a_score_that_needs_them_is_refused(tmp_path: Path) -> None:
    records = as_vllm(ROWS, build_model(), top_k=3, ranks=False)
    for record in records:  # as DistillKit's: the realised token is not added to the top K
        for place in range(1, len(record["prompt_logprobs"])):
            entries = record["prompt_logprobs"][place]
            record["prompt_logprobs"][place] = dict(list(entries.items())[:3])
    cache = import_rows(tmp_path / "imported", records)
    assert not any(cache.knows(name) for name in STATISTICS)
    with pytest.raises(CacheMismatchError, match=r"score: teacher_nll .* imported from vllm .*source: capture"):
        post_train(tmp_path / "static", PRESETS["uncertainty_aware_static"], cache)
    post_train(tmp_path / "online", PRESETS["uncertainty_aware"], cache)  # the first step makes the first threshold


def test_laws_of_another_teacher_are_refused_before_the_first_step(tmp_path: Path) -> None:
    cache = import_rows(tmp_path / "imported", as_vllm(ROWS, build_model(seed=3)))
    with pytest.raises(CacheMismatchError, match="not aligned"):
        post_train(tmp_path / "work", PRESETS["sft_kl"], cache)


def test_a_row_without_laws_is_named_and_nothing_is_published(tmp_path: Path) -> None:
    records = as_vllm(ROWS, build_model())
    missing = records.pop(5)
    with pytest.raises(DataError, match=r"1 of the training rows .* row 5 .*same tokenizer.*source: capture") as caught:
        import_rows(tmp_path / "imported", records)
    assert str(missing["prompt_token_ids"][:8]) in str(caught.value)
    assert not (tmp_path / "imported" / "cache").exists()


def test_the_entries_follow_uncertainty_here_too(tmp_path: Path) -> None:
    cache = import_rows(tmp_path / "imported", as_vllm(ROWS, build_model(), top_k=30), tail_mass=0.1, positions="targets")
    record = cache.read_batch([cache.targets_of(row.fingerprint, row.is_target) for row in ROWS])
    num_entries = (record["entry_logprobs"] > -torch.inf).sum(1)
    assert ((record["tail_logprob"].float().exp() <= 0.101) | (num_entries >= 30)).all()
    assert num_entries.min() < num_entries.max() <= 31


def test_entries_of_another_teacher_are_refused_even_where_no_label_is_known(tmp_path: Path) -> None:
    records = as_vllm(ROWS, build_model(), top_k=4, ranks=False)
    for record in records:
        for place in range(1, len(record["prompt_logprobs"])):
            label = record["prompt_token_ids"][place]
            others = [token for token in range(VOCABULARY) if token != label][:4]
            chances = (-0.7, -1.6, -3.0, -3.5)
            record["prompt_logprobs"][place] = {str(token): chance for token, chance in zip(others, chances, strict=True)}
    cache = import_rows(tmp_path / "imported", records)
    assert not cache.knows("label_logprob")
    with pytest.raises(CacheMismatchError, match=r"law at temperature 1\.0 differs .* not aligned"):
        post_train(tmp_path / "work", PRESETS["sft_kl"], cache)


def test_a_broken_record_is_told_with_the_command_and_nothing_is_published(tmp_path: Path) -> None:
    records = as_vllm(ROWS, build_model())
    first = records[3]["prompt_logprobs"][1]
    first[next(iter(first))] = {"logprob": -int("9" * 401)}
    with pytest.raises(DataError, match=r"laws\.jsonl:4.*not a number.*Then run: dvc repro cache_teacher"):
        import_rows(tmp_path / "imported", records)
    with pytest.raises(DataError, match="does not exist"):
        list(read_foreign(tmp_path / "nowhere", VOCABULARY))
    assert not (tmp_path / "imported" / "cache").exists()
