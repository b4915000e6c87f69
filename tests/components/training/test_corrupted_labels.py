"""A known truth of the objective (docs/objective.md): where labels are corrupted, a high-loss mask selects the noise.

Every token follows from the one before it, by a rule that a tiny base has learned; then a quarter of the training labels are
replaced. The real trainer fine-tunes on them, with the real masks.

Shapes: N target tokens of all rows.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.weights import TokenFacts, select, token_scores
from components.teacher_cache.reader import TeacherCacheReader
from components.training.target_scoring import ScoredTokens, join_scored, score_targets
from components.uncertainty.selection import quantile_threshold
from tests.components.training.conftest import build_trainer
from tests.conftest import PAD, VOCABULARY, Row, build_cache, build_model

LENGTH = 12
CORRUPTED = 0.25
HIGH = PRESETS["uncertainty_aware"]
LOW = replace(HIGH, select="low")
STEPS: dict[str, Any] = {"num_steps": 20, "learning_rate": 3e-3}


@dataclass(frozen=True)
class RuleRow(Row):
    """`is_corrupted`: of each token, whether it breaks the rule."""

    is_corrupted: tuple[bool, ...]
    laws: None = None
    teacher: None = None


def rule_rows(num_rows: int, corrupted: float, seed: int) -> list[RuleRow]:
    """Two tokens of prompt; then each token is what the one before it calls for, or by chance another."""
    rule = list(range(1, VOCABULARY))
    random.Random(0).shuffle(rule)
    draw, rows = random.Random(seed), []
    for _ in range(num_rows):
        ids, is_corrupted = [draw.randrange(1, VOCABULARY)], [False]
        while len(ids) < LENGTH:
            follows = rule[ids[-1] - 1]
            wrong = len(ids) >= 2 and draw.random() < corrupted
            ids.append(draw.choice([token for token in rule if token != follows]) if wrong else follows)
            is_corrupted.append(wrong)
        rows.append(RuleRow(ids, [place >= 2 for place in range(LENGTH)], tuple(is_corrupted)))
    return rows


CLEAN, TRAINING, HELD_OUT = rule_rows(64, 0, seed=1), rule_rows(32, CORRUPTED, seed=2), rule_rows(32, 0, seed=3)
IS_CORRUPTED_N = torch.tensor([wrong for row in TRAINING for wrong in row.is_corrupted[2:]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Knows the rule well, not by heart."""
    model = build_model()
    train(tmp_path_factory.mktemp("base"), PRESETS["sft"], None, CLEAN, model, num_steps=150, learning_rate=1e-2)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def base_cache(tmp_path_factory: pytest.TempPathFactory, base: dict[str, Tensor]) -> TeacherCacheReader:
    return build_cache(tmp_path_factory.mktemp("rule"), with_weights(base), TRAINING)


def with_weights(weights: dict[str, Tensor]) -> Any:
    model = build_model()
    model.load_state_dict(weights)
    return model


def train(folder: Path, objective: Objective, cache: Any, rows: list[RuleRow], model: Any, **changes: Any) -> None:
    build_trainer(folder, objective, cache, rows=list(rows), model=model, **changes).train()


def statistics(model: Any, rows: list[RuleRow]) -> ScoredTokens:
    return join_scored(score_targets(model, rows, pad_token_id=PAD, batch_tokens=4096))


def selected(objective: Objective, model: Any) -> Tensor:
    """The mask over all training tokens that the objective would make now, [N]."""
    tokens = statistics(model, TRAINING)
    facts = TokenFacts(torch.ones(len(tokens), dtype=torch.bool), torch.zeros(len(tokens), dtype=torch.long))
    scores_N = token_scores(objective, tokens.nll, tokens.entropy, facts)
    return select(objective, scores_N, facts, quantile_threshold(scores_N, objective.keep, objective.select))


def share_of_noise(selected_N: Tensor) -> float:
    return float(IS_CORRUPTED_N[selected_N].double().mean())


@pytest.mark.parametrize("objective", [HIGH, LOW], ids=["high", "low"])
def test_the_high_loss_half_holds_the_noise_and_the_low_loss_half_avoids_it(
    tmp_path: Path, base: dict[str, Tensor], base_cache: TeacherCacheReader, objective: Objective
) -> None:
    overall = float(IS_CORRUPTED_N.double().mean())
    assert overall == pytest.approx(CORRUPTED, abs=0.03)
    model = with_weights(base)
    train(tmp_path, objective, base_cache, TRAINING, model, **STEPS)
    noise = share_of_noise(selected(objective, model))
    assert noise > overall + 0.15 if objective is HIGH else noise < overall - 0.15, (noise, overall)


def test_keep_low_with_distillation_keeps_what_the_base_knew_and_keep_high_does_not(
    tmp_path: Path, base: dict[str, Tensor], base_cache: TeacherCacheReader
) -> None:
    """On rows without a corrupted label, which neither has seen; the noise that the high-loss half holds is what is learned."""
    known, nll = float(statistics(with_weights(base), HELD_OUT).nll.mean()), {}
    for name, objective in (("high", HIGH), ("high alone", replace(HIGH, distil_on="none")), ("low", LOW)):
        model = with_weights(base)
        train(tmp_path / name, objective, base_cache, TRAINING, model, **{**STEPS, "num_steps": 60})
        nll[name] = float(statistics(model, HELD_OUT).nll.mean())
    assert known < 0.5, "the base knows the rule"
    assert nll["low"] < known + 0.1 < nll["high"] < nll["high alone"], (known, nll)  # .29 < .40 < .54 < .74
