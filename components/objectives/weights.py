"""The two weights of every token: how much it is learned by maximum likelihood, how much it is pulled to the teacher.

Shapes: N target tokens of a micro-batch (prompt tokens that are only distilled count too), V vocabulary. All without a graph.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from components.objectives.objective import NUM_TOP_ENTRIES, Objective
from components.uncertainty.selection import quantile_threshold, select_tokens
from components.uncertainty.token_classes import CLASSES

Threshold = float | Tensor | None
"""One score for all tokens, one for each [N], or none (yet): then every token is selected."""


@dataclass(frozen=True)
class TokenFacts:
    """What is known of each token before the forward pass, [N]; None or absent where the objective does not need it.

    `row_N` numbers the row of the micro-batch; `class_N` counts in components.uncertainty.token_classes.CLASSES;
    `random_N` is uniform on [0, 1); `columns` are those of artifacts/token_scores.
    """

    is_target_N: Tensor
    row_N: Tensor
    teacher_logprob_N: Tensor | None = None
    class_N: Tensor | None = None
    random_N: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def at(self, rows: slice) -> "TokenFacts":
        """The facts of some of the tokens."""
        return replace(
            self,
            is_target_N=self.is_target_N[rows],
            row_N=self.row_N[rows],
            teacher_logprob_N=None if self.teacher_logprob_N is None else self.teacher_logprob_N[rows],
            class_N=None if self.class_N is None else self.class_N[rows],
            random_N=None if self.random_N is None else self.random_N[rows],
            columns={name: column_N[rows] for name, column_N in self.columns.items()},
        )


@dataclass(frozen=True)
class TokenWeights:
    """`mle_N` = m_t * u_t, `distil_N` = distil_weight * w_t, `selected_N`: m_t."""

    mle_N: Tensor
    distil_N: Tensor
    selected_N: Tensor


def token_scores(objective: Objective, nll_N: Tensor | None, entropy_N: Tensor | None, facts: TokenFacts) -> Tensor:
    """The detached score of each token, [N]; components.uncertainty.scores says what each means."""
    if objective.score in ("student_nll", "excess"):
        assert nll_N is not None, f"score {objective.score} follows the student"
        return nll_N.detach() - (facts.columns["reference_nll"] if objective.score == "excess" else 0.0)
    if objective.score == "entropy":
        assert entropy_N is not None, "score entropy follows the student"
        return entropy_N.detach()
    return static_scores(objective, facts.teacher_logprob_N, facts.columns)


def static_scores(objective: Objective, teacher_logprob_N: Tensor | None, columns: Mapping[str, Tensor]) -> Tensor:
    """Scores that need no student, [N]."""
    if objective.score == "mutual_information":
        return columns["mutual_information"]
    if objective.score == "column":
        assert objective.column is not None
        return columns[objective.column]
    assert teacher_logprob_N is not None, f"score {objective.score} needs the teacher's columns"
    if objective.score == "teacher_nll":
        return -teacher_logprob_N
    if objective.score == "teacher_excess":
        return -teacher_logprob_N - columns["reference_nll"]
    assert objective.score == "probability_gain", objective.score
    return (-columns["reference_nll"]).exp() - teacher_logprob_N.exp()


def select(objective: Objective, scores_N: Tensor | None, facts: TokenFacts, threshold: Threshold) -> Tensor:
    """m_t, [N]: selected target tokens; protected classes always, prompt tokens never."""
    if objective.select == "random":
        assert facts.random_N is not None
        selected_N = facts.random_N < objective.keep
    elif not objective.scores or threshold is None:
        selected_N = torch.ones_like(facts.is_target_N)
    else:
        assert scores_N is not None
        selected_N = select_tokens(scores_N, threshold, objective.select)
    if objective.protect:
        assert facts.class_N is not None
        for name in objective.protect:
            selected_N = selected_N | (facts.class_N == CLASSES.index(name))
    return selected_N & facts.is_target_N


def weigh(
    objective: Objective,
    nll_N: Tensor,
    entropy_N: Tensor | None,
    facts: TokenFacts,
    threshold: Threshold,
    distil_weight: float,
) -> TokenWeights:
    """Both weights of each token. `threshold` None: everything is selected; `distil_weight`: that of this step."""
    scores_N = token_scores(objective, nll_N, entropy_N, facts) if objective.scores and threshold is not None else None
    selected_N = select(objective, scores_N, facts, threshold)
    return weights_of(objective, selected_N, nll_N, entropy_N, facts, distil_weight)


def weights_of(
    objective: Objective,
    selected_N: Tensor,
    nll_N: Tensor,
    entropy_N: Tensor | None,
    facts: TokenFacts,
    distil_weight: float,
) -> TokenWeights:
    """Both weights for a mask already made."""
    mle_N = selected_N.to(nll_N.dtype)
    rest_N = {
        "none": torch.zeros_like(mle_N),
        "rest": 1 - mle_N,
        "all": torch.ones_like(mle_N),
        "selected": mle_N,
    }[objective.distil_on]
    prompt_weight = 1.0 if objective.prompt_tokens == "distil_only" else 0.0
    distilled_N = torch.where(facts.is_target_N, rest_N, prompt_weight)
    if objective.token_weight == "probability":
        mle_N = mle_N * (-nll_N.detach()).exp()
    elif objective.token_weight == "entropy":
        assert entropy_N is not None
        mle_N = mle_N * entropy_N.detach() / math.log(NUM_TOP_ENTRIES)
    return TokenWeights(mle_N, distil_weight * distilled_N, selected_N)


def sequence_thresholds(objective: Objective, scores_N: Tensor, facts: TokenFacts) -> Tensor:
    """Each row's own quantile, [N]: `keep` of every row's target tokens."""
    threshold_N = torch.empty_like(scores_N)
    for row in facts.row_N.unique():
        is_row_N = facts.row_N == row
        own_N = scores_N[is_row_N & facts.is_target_N]
        if len(own_N):
            threshold_N[is_row_N] = quantile_threshold(own_N, objective.keep, objective.select)
    return threshold_N
