"""The combined objective on some tokens in its plain form: the reference that the fused head and the trainers must equal.

Shapes: N target tokens of a micro-batch, V vocabulary.
"""

from torch import Tensor

from components.objectives.fused_head import FusedLoss
from components.objectives.naive_loss import naive_token_loss
from components.objectives.objective import Objective
from components.objectives.row_loss import DenseTeacher, LossSpec, TokenChunk, Weigh
from components.objectives.sparse_target import TeacherTargets
from components.objectives.weights import Threshold, TokenFacts, weigh

Teacher = TeacherTargets | DenseTeacher | None


def loss_spec(objective: Objective, labels_N: Tensor, weigh_chunk: Weigh, teacher: Teacher) -> LossSpec:
    """What the fused head, or the plain form, needs to know. A label of -100 marks a prompt token."""
    assert teacher is not None or not objective.distils, "distillation needs the teacher"
    return LossSpec(
        labels_N,
        weigh_chunk,
        teacher if objective.distils else None,
        objective.temperature,
        objective.divergence,
        objective.entropy,
    )


def token_terms(
    objective: Objective,
    logits_NV: Tensor,
    labels_N: Tensor,
    teacher: Teacher,
    facts: TokenFacts,
    threshold: Threshold,
    distil_weight: float | None = None,
) -> FusedLoss:
    """`sum_t m_t u_t nll_t + weight w_t T^2 D_t` from whole logits, by autograd; without tokens it is a zero with a graph.

    The plain reference: no stage calls it. Tests hold the fused head, the trainers and the presets against it.
    """
    weight = objective.distil_weight if distil_weight is None else distil_weight

    def weigh_chunk(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        own_threshold = threshold[chunk.rows] if isinstance(threshold, Tensor) else threshold
        weights = weigh(objective, chunk.nll_C, chunk.entropy_C, facts.at(chunk.rows), own_threshold, weight)
        return weights.mle_N, weights.distil_N

    return naive_token_loss(logits_NV, loss_spec(objective, labels_N, weigh_chunk, teacher))
