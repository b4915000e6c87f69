"""Laws of the probe: the bytes of the real capture from a few of its records, whatever lengths and uncertainty they have."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from components.teacher_cache.capture import LawCapture, LawSettings
from components.teacher_cache.entry_guess import count_contexts
from components.teacher_cache.format import CacheIdentity
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.plan_probe import (
    ProbedRecords,
    configured_choice,
    entry_choices,
    file_bytes,
    held_tokens,
    planned_batches,
    planned_size,
    probe_records,
    shape_of,
    time_batches,
    write_probe,
)
from components.teacher_cache.planner import CacheSize, spread_places
from components.teacher_cache.shard_plan import CaptureSettings, PlannedRow, plan_capture
from tests.conftest import Row, build_identity, build_model, build_rows, capture_rows

WIDE = 400
SETTINGS = CaptureSettings(batch_tokens=200, shard_tokens=2000)


def build_mixed_model() -> Any:
    """After a token of the first half its law is sharp, after one of the second half it is flat."""
    model = build_model(vocab_size=WIDE)
    with torch.no_grad():
        model.model.embed_tokens.weight[: WIDE // 2, 0] = 20.0
        model.model.embed_tokens.weight[WIDE // 2 :, 0] = 0.0
        model.lm_head.weight[:, 0] *= 8.0
        model.lm_head.weight[:, 1:] *= 0.3
    return model


def mixed_rows(num_rows: int) -> list[Row]:
    """Rows of lognormal length: a third sure, a third unsure, a third of both, whatever their lengths."""
    draw, rows = random.Random(0), []
    ranges = [(1, WIDE // 2), (WIDE // 2, WIDE), (1, WIDE)]
    for _ in range(num_rows):
        length = max(4, min(64, round(draw.lognormvariate(2.3, 0.8))))
        tokens = [draw.randrange(*first) for first in [draw.choice(ranges)] for _ in range(length)]
        prompt = draw.randint(1, length - 1)
        rows.append(Row(tokens, [position >= prompt for position in range(length)]))
    return rows


def probed(model: Any, rows: list[Row], identity: CacheIdentity, num_records: int, width: int) -> ProbedRecords:
    planned = [row for shard in plan_capture(rows, identity, SETTINGS).new for row in shard.rows]
    sample = [planned[place] for place in spread_places([row.length for row in planned], num_records)]
    choices = entry_choices(identity, width)
    widest = max(choice.max_entries for choice in choices)
    capture = LawCapture(model, LawSettings(widest, identity.temperature, identity.positions))
    layout = EntryLayout.of(width, identity.probability_bits)
    return probe_records(capture, rows, sample, identity, choices, layout, SETTINGS.batch_tokens)


def size_of(folder: Path, probe: ProbedRecords, rows: list[Row], identity: CacheIdentity, width: int) -> CacheSize:
    plan = plan_capture(rows, identity, SETTINGS)
    overhead = file_bytes(folder, write_probe(folder, probe, identity, width), len(plan.new))
    counts_V = count_contexts(rows, identity.positions, width)
    return planned_size(probe, configured_choice(identity, width), plan, counts_V, identity, overhead)


@pytest.mark.parametrize("positions", ["targets", "all"])
def test_planned_bytes_are_within_three_percent_of_the_capture_on_skewed_lengths_and_mixed_uncertainty(
    tmp_path: Path, positions: str
) -> None:
    model = build_mixed_model()
    rows = mixed_rows(3000)
    identity = build_identity(max_entries=64, tail_mass=0.03, probability_bits=12, positions=positions)
    probe = probed(model, rows, identity, 128, WIDE)
    planned = size_of(tmp_path / "probe", probe, rows, identity, WIDE)
    manifest = capture_rows(tmp_path, model, rows, identity, shard_tokens=SETTINGS.shard_tokens)
    assert manifest is not None and len(manifest.shards) == planned.num_shards > 1
    real = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
    counts = [record.columns["num_entries"].mean() for record in probe.records]
    assert min(counts) < 3 and max(counts) > 20, "the rows must differ in how sure the model is"
    assert (planned.num_records, planned.num_tokens) == (manifest.num_records, manifest.num_tokens)
    assert abs(planned.total_bytes / real - 1) < 0.03
    assert abs(planned.total_bytes / real - 1) <= planned.relative_error < 0.08


def test_a_plan_of_all_records_is_exact_to_the_digits_of_its_offsets(tmp_path: Path) -> None:
    model, rows = build_model(), build_rows(60)
    identity = build_identity(tail_mass=0.1, probability_bits=12)
    planned = size_of(tmp_path / "probe", probed(model, rows, identity, 128, 50), rows, identity, 50)
    capture_rows(tmp_path, model, rows, identity, shard_tokens=SETTINGS.shard_tokens)
    real = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
    assert planned.relative_error == 0 and abs(planned.total_bytes - real) <= 16 * planned.num_shards


def test_probed_records_are_those_of_the_capture_bit_for_bit(tmp_path: Path) -> None:
    model, rows = build_model(), build_rows(40)
    identity = build_identity(tail_mass=0.05, probability_bits=12)
    probe = probed(model, rows, identity, 1000, 50)
    cache = write_probe(tmp_path / "probe", probe, identity, 50)
    capture_rows(tmp_path, model, rows, identity)
    real = type(cache)(tmp_path / "cache", identity)
    for planned in probe.planned:
        ours, theirs = (reader.read(planned.fingerprint, planned.num_kept) for reader in (cache, real))
        assert torch.equal(ours["entry_ids"], theirs["entry_ids"])
        torch.testing.assert_close(ours["entropy"], theirs["entropy"], rtol=1e-4, atol=1e-4)


def test_each_choice_counts_what_its_own_capture_would_keep(tmp_path: Path) -> None:
    model, rows = build_model(), build_rows(30)
    identity = build_identity(max_entries=16, tail_mass=0.1, probability_bits=12)
    probe = probed(model, rows, identity, 1000, 50)
    for choice, sums in probe.choices.items():
        own = build_identity(max_entries=choice.max_entries, tail_mass=choice.tail_mass, probability_bits=12)
        records = probed(model, rows, own, 1000, 50).records
        kept = [record.columns["num_entries"].tolist() for record in records]
        assert kept == [sums.kept[place].tolist() for place in range(len(records))]
        assert sums.num_entries == sum(int(record.columns["num_entries"].sum(dtype="int64")) for record in records)
        assert 0 < sums.covered <= sums.num_tokens


def test_no_choice_is_wider_than_the_vocabulary_and_the_configured_one_is_among_them() -> None:
    identity = build_identity(max_entries=64, tail_mass=0.2)
    choices = entry_choices(identity, 50)
    assert max(choice.max_entries for choice in choices) == 50
    assert configured_choice(identity, 50) in choices and len(choices) == len(set(choices))


def test_timed_batches_are_batches_of_the_plan(tmp_path: Path) -> None:
    model, rows = build_model(), build_rows(40)
    identity = build_identity()
    batches = planned_batches(plan_capture(rows, identity, SETTINGS).new, SETTINGS.batch_tokens)
    assert sorted(row.place for batch in batches for row in batch) == list(range(40))
    capture = LawCapture(model, LawSettings(8, 1.0, "targets"))
    timed = time_batches(capture, rows, batches[:2], identity, EntryLayout.of(50, 16))
    assert [part.shape for part in timed] == [shape_of(batch) for batch in batches[:2]]
    assert all(part.forward.best > 0 and part.encoding.best > 0 and part.forward.num_rounds == 3 for part in timed)


def test_tokens_that_an_earlier_cache_holds_under_the_same_laws_are_counted(tmp_path: Path) -> None:
    model, rows = build_model(), build_rows(20)
    identity = build_identity()
    capture_rows(tmp_path, model, rows[:12], identity)
    planned: list[PlannedRow] = [row for shard in plan_capture(rows, identity, SETTINGS).new for row in shard.rows]
    expected = sum(row.num_kept for row in planned[:12])
    assert held_tokens(tmp_path / "cache", build_identity(data_fingerprint="more"), planned) == expected
    assert held_tokens(tmp_path / "cache", build_identity(max_entries=4), planned) == 0
    assert held_tokens(tmp_path / "nowhere", identity, planned) == 0
