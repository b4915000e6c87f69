"""Laws of a cell: its name stands for everything that decides the model, its checkpoint for what looks at it too."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import torch

from components.data.tokenized import TokenizedRow
from components.objectives.presets import PRESETS
from components.params import EarlyStoppingParams, ProbeParams
from components.teacher_cache.format import CacheIdentity
from components.training.inputs import MAX_VALIDATION_ROWS, validation_rows
from components.training.row_order import spread_rows
from components.training.train_cell import resume_key, run_fingerprint
from tests.components.training.conftest import settings
from tests.conftest import build_identity


def inputs(identity: CacheIdentity, seal: str = "seal", num_validation: int = 4) -> Any:
    cache, scores = SimpleNamespace(identity=identity, seal="of the cache"), SimpleNamespace(seal=seal)
    validation = [
        TokenizedRow(str(n), f"file {n // 300}", "messages", f"row {n}", [1, 2, 3], [False, True, True])
        for n in range(num_validation)
    ]
    given = {"validation": validation, "class_of_token_V": torch.zeros(10, dtype=torch.int8)}
    return SimpleNamespace(cache=SimpleNamespace(manifest=cache), scores=SimpleNamespace(manifest=scores), **given)


def test_the_name_of_a_model_stands_for_everything_that_decides_it() -> None:
    objective, identity, params = PRESETS["uncertainty_aware"], build_identity(), settings()
    known = run_fingerprint(objective, params, inputs(identity), 0)
    assert known == run_fingerprint(objective, params, inputs(identity), 0)
    others = [run_fingerprint(objective, params, inputs(identity), 1)]
    others += [run_fingerprint(objective, params, inputs(identity, seal="other"), 0)]
    others += [run_fingerprint(replace(objective, keep=0.4), params, inputs(identity), 0)]
    others += [run_fingerprint(objective, params, inputs(replace(identity, **{name: "x"})), 0) for name in asdict(identity)]
    changes: list[dict[str, Any]] = [{"num_steps": 2}, {"micro_batch_size": 2}, {"packing": True}]
    others += [run_fingerprint(objective, settings(**change), inputs(identity), 0) for change in changes]
    assert len({known, *others}) == 1 + len(others)


def test_validation_rows_decide_the_model_where_early_stopping_watches_them_and_nowhere_else() -> None:
    objective, few, more = PRESETS["sft"], inputs(build_identity()), inputs(build_identity(), num_validation=5)
    stopping = settings(early_stopping=EarlyStoppingParams(enabled=True))
    assert run_fingerprint(objective, stopping, few, 0) != run_fingerprint(objective, stopping, more, 0)
    assert run_fingerprint(objective, settings(), few, 0) == run_fingerprint(objective, settings(), more, 0)


def test_another_probe_resumes_nothing_and_names_the_same_model() -> None:
    """The checkpoint holds the probe's record; the model does not know that it was looked at."""
    few, more = inputs(build_identity()), inputs(build_identity(), num_validation=5)
    fingerprint = run_fingerprint(PRESETS["sft"], settings(), few, 0)
    key = resume_key(fingerprint, few, ProbeParams())
    assert key == resume_key(fingerprint, few, ProbeParams())
    others = [resume_key(fingerprint, few, ProbeParams(every_steps=7)), resume_key("other", few, ProbeParams())]
    others += [resume_key(fingerprint, more, ProbeParams()), fingerprint]
    assert len({key, *others}) == 5


def test_validation_rows_come_from_all_files_and_no_more_than_are_looked_at() -> None:
    rows = validation_rows(inputs(build_identity(), num_validation=900))
    assert len(rows) <= MAX_VALIDATION_ROWS
    assert {int(row.row_id) // 300 for row in rows} == {0, 1, 2}, "three files of 300 rows"
    assert len(validation_rows(inputs(build_identity(), num_validation=3))) == 3
    assert validation_rows(inputs(build_identity(), num_validation=0)) == [] == spread_rows([], 5)


def test_other_imported_laws_make_another_model_though_their_identity_is_the_same() -> None:
    def name(source: str, seal: str) -> str:
        given = inputs(build_identity(source=source))
        given.cache.manifest.seal = seal
        return run_fingerprint(PRESETS["sft_kl"], settings(), given, 0)

    assert name("vllm", "a") != name("vllm", "b")
    assert name("capture", "a") == name("capture", "b"), "captured laws follow from the identity"
