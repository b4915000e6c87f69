"""The gate: a candidate must be better in-domain than the base and must not lose more than a margin outside.

Both questions are asked against the base and, where there is one, the champion (non-inferiority in both respects there).
A margin is met when the whole paired bootstrap interval lies on its good side.
"""

from dataclasses import dataclass
from typing import Any

from components.evaluation.comparison import item_scores, set_names
from components.evaluation.statistics import paired_difference
from components.params import ComparisonParams, RegistrationParams


@dataclass(frozen=True)
class GateVerdict:
    """`passed`, and one sentence per question with its numbers."""

    passed: bool
    reasons: tuple[str, ...]

    @property
    def word(self) -> str:
        return "pass" if self.passed else "reject"


def judge(
    candidate: dict[str, Any],
    base: dict[str, Any],
    champion: dict[str, Any] | None,
    registration: RegistrationParams,
    comparison: ComparisonParams,
) -> GateVerdict:
    """Evaluations in, verdict out. The champion is judged like the base, but a tie in-domain is enough."""
    questions = [
        ("in_domain_accuracy", "base", base, registration.against_base.min_in_domain_gain),
        ("ood_accuracy", "base", base, -registration.against_base.max_ood_loss),
    ]
    if champion is not None:
        questions += [
            ("in_domain_accuracy", "champion", champion, registration.against_champion.min_in_domain_gain),
            ("ood_accuracy", "champion", champion, -registration.against_champion.max_ood_loss),
        ]
    answers = [_answer(candidate, reference, metric, name, margin, comparison) for metric, name, reference, margin in questions]
    return GateVerdict(all(passed for passed, _ in answers), tuple(reason for _, reason in answers))


def _answer(
    candidate: dict[str, Any], reference: dict[str, Any], metric: str, name: str, margin: float, params: ComparisonParams
) -> tuple[bool, str]:
    difference = paired_difference(
        item_scores([candidate], set_names(candidate, metric)),
        item_scores([reference], set_names(reference, metric)),
        num_resamples=params.num_resamples,
        confidence=params.confidence,
        seed=params.seed,
    )
    passed = difference.low > margin
    sign = "passes" if passed else "fails"
    return passed, (
        f"{metric} against {name}: {difference.value:+.3f} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}], must be above {margin:+.3f}: {sign}"
    )
