"""Laws of making the cache: one record for each distinct row, the same bytes after a kill, nothing recomputed but a shard."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from components.artifacts import fingerprint_json
from components.data.training_rows import count_targets
from components.errors import ArtifactError, ModelError
from components.teacher_cache.format import CacheManifest
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.shard_plan import CaptureSettings, PlannedShard, plan_capture
from components.teacher_cache.writer import Teacher, write_cache
from tests.conftest import Row, build_cache, build_identity, build_model, build_rows, end_of_child, start_child

ROWS = build_rows(40)
SHARD_TOKENS = 25


def capture(
    folder: Path, model: Any, rows: list[Row] = ROWS, batch_tokens: int = 60, shard_tokens: int = SHARD_TOKENS
) -> CacheManifest:
    manifest = write_cache(
        Teacher(lambda: model, model.config.vocab_size),
        rows,
        build_identity(),
        CaptureSettings(batch_tokens, shard_tokens),
        target=folder,
        work=folder.parent / ".work",
    )
    assert manifest is not None
    return manifest


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def on_forward(model: Any, react: Callable[[int], None] = lambda _: None) -> tuple[Any, list[int]]:
    """The model, calling `react` with the number of rows captured so far before each forward pass; and that number, kept up."""
    seen = [0]

    def hook(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        if keywords["input_ids"].tolist() == [[0, 1, 2, 3]]:
            return  # the probe of the head, no row
        react(seen[0])
        seen[0] += len(keywords["input_ids"])

    model.model.register_forward_pre_hook(hook, with_kwargs=True)
    return model, seen


def capture_and_die(folder: Path, rows_done: int) -> None:
    """Capture in another process that kills itself once `rows_done` rows are through the model; it notes how many they were."""

    def kill(num_rows: int) -> None:
        if num_rows >= rows_done:
            (folder.parent / "rows_done").write_text(str(num_rows))
            os.kill(os.getpid(), signal.SIGKILL)

    assert end_of_child(start_child(lambda: capture(folder, on_forward(build_model(), kill)[0]))) == -signal.SIGKILL


def test_every_target_of_every_row_has_the_statistics_of_its_own_position(tmp_path: Path) -> None:
    model = build_model()
    cache = build_cache(tmp_path, model, ROWS, shard_tokens=SHARD_TOKENS)
    for row in ROWS[:12]:
        record = cache.read(row.fingerprint, count_targets(row))
        with torch.no_grad():
            logprobs = model(torch.tensor([row.input_ids])).logits[0].log_softmax(1)
        places = [position for position, is_target in enumerate(row.is_target) if is_target]
        expected = torch.stack([logprobs[place - 1, row.input_ids[place]] for place in places])
        torch.testing.assert_close(record["label_logprob"], expected, rtol=0, atol=1e-5)


def test_the_same_row_twice_is_one_record_and_counts_once(tmp_path: Path) -> None:
    manifest = capture(tmp_path / "cache", build_model(), [*ROWS, *ROWS[:7]])
    assert manifest.num_records == len(ROWS)
    assert manifest.num_tokens == sum(count_targets(row) for row in ROWS)


def test_the_same_tokens_with_other_targets_are_another_record(tmp_path: Path) -> None:
    row, fewer = Row([1, 2, 3], [False, True, True]), Row([1, 2, 3], [False, False, True])
    assert capture(tmp_path / "cache", build_model(), [row, fewer]).num_records == 2


def test_two_captures_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        capture(tmp_path / name, build_model())
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_the_size_of_a_batch_changes_the_cache_by_float_noise_alone(tmp_path: Path) -> None:
    caches = {}
    for batch_tokens in (1, 90, 100_000):
        capture(tmp_path / str(batch_tokens), build_model(), batch_tokens=batch_tokens)
        caches[batch_tokens] = TeacherCacheReader(tmp_path / str(batch_tokens), build_identity())
    for row in ROWS:
        one, *others = (cache.read(row.fingerprint, count_targets(row)) for cache in caches.values())
        for other in others:
            for name in ("label_logprob", "entropy"):
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)
            for name in ("entry_logprobs", "tail_logprob"):  # a last bit may round the other way
                torch.testing.assert_close(one[name].float().exp(), other[name].float().exp(), rtol=2e-3, atol=1e-4)


def test_the_order_of_rows_changes_no_record(tmp_path: Path) -> None:
    straight = build_cache(tmp_path / "a", build_model(), ROWS)
    reversed_ = build_cache(tmp_path / "b", build_model(), ROWS[::-1])
    for row in ROWS:
        one, other = (cache.read(row.fingerprint, count_targets(row)) for cache in (straight, reversed_))
        torch.testing.assert_close(one["label_logprob"], other["label_logprob"], rtol=0, atol=1e-5)


def planned() -> list[PlannedShard]:
    return plan_capture(ROWS, build_identity(), CaptureSettings(60, SHARD_TOKENS)).new


def test_shards_hold_all_rows_in_order_and_close_once_they_are_full() -> None:
    shards = planned()
    assert [row.fingerprint for shard in shards for row in shard.rows] == [row.fingerprint for row in ROWS]
    sizes = [shard.num_tokens for shard in shards]
    assert len(shards) > 3 and all(SHARD_TOKENS <= size < SHARD_TOKENS + 20 for size in sizes[:-1])


def test_a_first_token_marked_as_target_is_counted_by_nobody(tmp_path: Path) -> None:
    """Nothing predicts it: counting it would shift every later record of the shard."""
    odd = Row(ROWS[0].input_ids, [True] * len(ROWS[0].input_ids))
    manifest = capture(tmp_path / "cache", build_model(), [odd, *ROWS[1:]])
    cache = TeacherCacheReader(tmp_path / "cache", build_identity())
    assert sum(shard.num_tokens for shard in manifest.shards) == manifest.num_tokens
    assert len(cache.read(odd.fingerprint, count_targets(odd))["entropy"]) == len(odd.input_ids) - 1
    straight = build_cache(tmp_path / "straight", build_model(), ROWS)
    last = ROWS[-1]
    torch.testing.assert_close(
        cache.read(last.fingerprint, count_targets(last))["entropy"],
        straight.read(last.fingerprint, count_targets(last))["entropy"],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("rows_done", [0, 7, 21, 36])
def test_a_killed_capture_resumes_to_the_same_bytes_and_recomputes_at_most_one_shard(tmp_path: Path, rows_done: int) -> None:
    capture(tmp_path / "whole", build_model())
    capture_and_die(tmp_path / "resumed", rows_done)
    assert not (tmp_path / "resumed").exists()
    model, seen = on_forward(build_model())
    capture(tmp_path / "resumed", model)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    rows_twice = int((tmp_path / "rows_done").read_text()) + seen[0] - len(ROWS)
    assert 0 <= rows_twice <= max(len(shard.rows) for shard in planned())


def test_a_finished_shard_that_was_damaged_is_captured_again(tmp_path: Path) -> None:
    capture(tmp_path / "whole", build_model())
    capture_and_die(tmp_path / "resumed", 36)
    shard = next((tmp_path / ".work").rglob(planned()[1].name))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    capture(tmp_path / "resumed", build_model())
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_a_killed_capture_resumed_with_shards_of_another_size_mixes_nothing(tmp_path: Path) -> None:
    capture_and_die(tmp_path / "cache", 21)
    capture(tmp_path / "cache", build_model(), shard_tokens=110)
    capture(tmp_path / "whole", build_model(), shard_tokens=110)
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


def test_a_published_capture_leaves_no_scratch_of_its_own(tmp_path: Path) -> None:
    capture(tmp_path / "cache", build_model())
    assert [file.name for file in (tmp_path / ".work").rglob("*") if file.is_file()] == ["plan.lock"]


def test_columns_are_those_of_the_format_for_whoever_reads_them_with_safetensors(tmp_path: Path) -> None:
    manifest = capture(tmp_path / "cache", build_model())
    entry = manifest.shards[0]
    shard = load_file(tmp_path / "cache" / entry.name)
    kinds = {name: (column.shape[0], str(column.dtype)) for name, column in shard.items() if name != "entries"}
    assert kinds == {
        "num_entries": (entry.num_tokens, "uint8"),
        "tail_logprob": (entry.num_tokens, "float16"),
        "label_logprob": (entry.num_tokens, "float32"),
        "label_rank": (entry.num_tokens, "uint16"),
        "entropy": (entry.num_tokens, "float16"),
        "log_partition": (entry.num_tokens, "float32"),
        "margin": (entry.num_tokens, "float16"),
    }
    assert shard["entries"].dtype == "uint8" and manifest.num_bytes == sum(
        file.stat().st_size for file in (tmp_path / "cache").glob("*.safetensors")
    )


def test_a_complete_cache_is_left_alone_and_the_teacher_is_not_even_loaded(tmp_path: Path) -> None:
    capture(tmp_path / "cache", build_model())
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}

    def load() -> Any:
        raise AssertionError("nothing is missing")

    teacher = Teacher(load, build_model().config.vocab_size)
    settings = CaptureSettings(60, SHARD_TOKENS)
    write_cache(teacher, ROWS, build_identity(), settings, target=tmp_path / "cache", work=tmp_path / ".work")
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == before


def recaptured(folder: Path, rows: list[Row]) -> int:
    """Rows that go through the model when `rows` are captured into `folder`, as it is now."""
    model, seen = on_forward(build_model())
    manifest = write_cache(
        Teacher(lambda: model, model.config.vocab_size),
        rows,
        replace(build_identity(), data_fingerprint=fingerprint_json([row.fingerprint for row in rows])),
        CaptureSettings(60, SHARD_TOKENS),
        target=folder,
        work=folder.parent / ".work",
    )
    assert manifest is not None and manifest.num_records == len({row.fingerprint for row in rows})
    reader = TeacherCacheReader(folder, manifest.identity)
    assert sum(len(reader.read(row.fingerprint, count_targets(row))["entropy"]) for row in rows) == manifest.num_tokens
    return seen[0]


def test_added_rows_alone_are_captured_and_old_shards_stay_the_files_they_are(tmp_path: Path) -> None:
    folder, more = tmp_path / "cache", [*build_rows(3, seed=5), *ROWS, *build_rows(2, seed=6)]
    assert recaptured(folder, ROWS) == len(ROWS)
    before = {file.name: file.stat().st_ino for file in folder.glob("shard-*")}
    assert recaptured(folder, more) == 5
    after = {file.name: file.stat().st_ino for file in folder.glob("shard-*")}
    assert before.items() <= after.items() and len(after) == len(before) + 1
    assert recaptured(folder, more[:-2]) == 0, "a removed row costs nothing"


def test_a_shard_that_is_hardly_wanted_any_more_is_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    recaptured(folder, ROWS)
    first = planned()[0]
    kept = [row for row in ROWS if row.fingerprint not in {own.fingerprint for own in first.rows[1:]}]
    assert recaptured(folder, kept) <= 1
    assert not (folder / first.name).exists() or first.rows[0].num_kept * 2 >= first.num_tokens


def test_only_a_damaged_shard_is_captured_again(tmp_path: Path) -> None:
    capture(tmp_path / "cache", build_model())
    whole = files(tmp_path / "cache")
    for damage in (lambda content: content[:-1], lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]):
        shard = tmp_path / "cache" / planned()[2].name
        shard.write_bytes(damage(shard.read_bytes()))
        model, seen = on_forward(build_model())
        capture(tmp_path / "cache", model)
        assert seen[0] == len(planned()[2].rows)
        assert {name: files(tmp_path / "cache")[name] for name in whole if name.startswith("shard")} == {
            name: content for name, content in whole.items() if name.startswith("shard")
        }


def test_two_captures_at_once_share_the_work_and_agree(tmp_path: Path) -> None:
    capture(tmp_path / "whole", build_model())
    children = [start_child(lambda: capture(tmp_path / "cache", build_model())) for _ in range(3)]
    assert [end_of_child(child) for child in children] == [0, 0, 0]
    assert files(tmp_path / "cache") == files(tmp_path / "whole")
    assert [file for file in (tmp_path / ".work").rglob("shard*")] == []


def test_a_base_that_gives_no_finite_loss_is_refused_with_the_row_and_nothing_is_published(tmp_path: Path) -> None:
    model = build_model()
    broken = Row([5, 49, 7, 8, 9], [False, False, True, True, True])
    rows = [row for row in ROWS if 49 not in row.input_ids]
    with torch.no_grad():
        model.model.embed_tokens.weight[49] = float("nan")
    with pytest.raises(ModelError, match=r"\[5, 49, 7, 8, 9\]"):
        capture(tmp_path / "cache", model, [*rows, broken])
    assert not (tmp_path / "cache").exists()


def test_a_row_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    class Misnamed(Row):
        fingerprint = "0" * 32

    rows = [*ROWS[:3], Misnamed(ROWS[4].input_ids, ROWS[4].is_target)]
    with pytest.raises(ArtifactError, match=rf"row 3 is named {'0' * 32}, its tokens .*dvc repro -f -s prepare_data"):
        capture(tmp_path / "cache", build_model(), rows)
    assert not (tmp_path / "cache").exists()
