"""Laws of a cell: its checkpoint belongs to everything that decides the result."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

from components.objectives.presets import PRESETS
from components.params import ProbeParams
from components.teacher_cache.format import CacheIdentity
from components.training.train_cell import run_fingerprint
from tests.components.training.conftest import settings
from tests.conftest import build_identity


def inputs(identity: CacheIdentity, seal: str = "seal") -> Any:
    cache, scores = SimpleNamespace(identity=identity), SimpleNamespace(seal=seal)
    return SimpleNamespace(cache=SimpleNamespace(manifest=cache), scores=SimpleNamespace(manifest=scores))


def test_a_checkpoint_belongs_to_everything_that_decides_the_result() -> None:
    objective, identity, params = PRESETS["uncertainty_aware"], build_identity(), settings()
    known = run_fingerprint(objective, params, inputs(identity), 0)
    assert known == run_fingerprint(objective, params, inputs(identity), 0)
    others = [run_fingerprint(objective, params, inputs(identity), 1)]
    others += [run_fingerprint(objective, params, inputs(identity), 0, ProbeParams())]
    others += [run_fingerprint(objective, params, inputs(identity, seal="other"), 0)]
    others += [run_fingerprint(replace(objective, keep=0.4), params, inputs(identity), 0)]
    others += [run_fingerprint(objective, params, inputs(replace(identity, **{name: "x"})), 0) for name in asdict(identity)]
    changes: list[dict[str, Any]] = [{"num_steps": 2}, {"micro_batch_size": 2}, {"packing": True}]
    others += [run_fingerprint(objective, settings(**change), inputs(identity), 0) for change in changes]
    assert len({known, *others}) == 1 + len(others)
