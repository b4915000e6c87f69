"""How each uncertainty score of a model ranks its tokens: by what could still be learned, or by chance.

Shapes: N target tokens. In nats, except 1 - confidence.
"""

from typing import Any

from torch import Tensor

from components.evaluation.likelihood import TokenStatistics
from components.uncertainty.calibration import rank_correlation
from components.uncertainty.scores import excess_loss


def uncertainty_against_truth(tokens: TokenStatistics, reference: TokenStatistics | None = None) -> dict[str, Any] | None:
    """Spearman's rho of every score with the epistemic and the aleatoric uncertainty; None where neither can be told.

    `against` says what stands for them. `law`, where the true law is known: KL(truth || model) and the entropy of the truth, on
    the tokens whose law is known. `reference`, elsewhere, given the statistics of a model that has learned the task: the loss
    above the reference's, and the reference's entropy. The latter is a stand-in: the reference has its own ignorance, and
    student_nll is part of its first column, so compare scores rather than reading one rho alone.

    Realised nll follows the epistemic side early in training and the aleatoric side late.
    """
    known_N = ~tokens.true_entropy.isnan()
    if bool(known_N.any()):
        known = tokens.keep(known_N)
        scores = _scores(known)
        if reference is not None:
            scores["excess"] = excess_loss(known.nll, reference.nll[known_N])
        return _table("law", scores, known.true_kl, known.true_entropy)
    if reference is None or not len(tokens.nll):
        return None
    return _table("reference", _scores(tokens), excess_loss(tokens.nll, reference.nll), reference.entropy)


def _scores(tokens: TokenStatistics) -> dict[str, Tensor]:
    """Every score that needs no other model but the base; more means less sure (of drift: farther from the base)."""
    return {
        "student_nll": tokens.nll,
        "entropy": tokens.entropy,
        "one_minus_confidence": 1 - tokens.confidence,
        "drift_kl": tokens.drift_kl,
    }


def _table(against: str, scores: dict[str, Tensor], epistemic_N: Tensor, aleatoric_N: Tensor) -> dict[str, Any]:
    return {
        "against": against,
        "num_tokens": len(epistemic_N),
        "mean_epistemic": float(epistemic_N.double().mean()),
        "mean_aleatoric": float(aleatoric_N.double().mean()),
        "rank_correlation": {
            name: {"epistemic": rank_correlation(score_N, epistemic_N), "aleatoric": rank_correlation(score_N, aleatoric_N)}
            for name, score_N in scores.items()
        },
    }
