"""Named objectives with their sources. params.yaml names one and sets the knobs that differ (components.objectives.resolve)."""

import math

from components.objectives.objective import Objective

PRESETS: dict[str, Objective] = {
    # Supervised fine-tuning: cross-entropy on every target token.
    "sft": Objective(select="all", distil_on="none"),
    # Cross-entropy on every token plus KL to the frozen base on every token (learning without forgetting, Li & Hoiem 2016,
    # arXiv 1606.09282).
    "sft_kl": Objective(select="all", distil_on="all"),
    # Maximum likelihood on the high-loss half alone: one of the two parts of arXiv 2503.16511 (the other half is ignored).
    "masked_mle": Objective(distil_on="none"),
    # Both parts: maximum likelihood on the high-loss half, self-distillation on the rest (after arXiv 2503.16511).
    "uncertainty_aware": Objective(),
    # The same with a mask that never moves: the tokens that the base finds hard, one quantile for the whole dataset.
    "uncertainty_aware_static": Objective(score="teacher_nll", scope="dataset"),
    # The same with the excess over a reference that has learned the task: what the student can still learn
    # (reducible holdout loss, Mindermann et al. 2022, arXiv 2206.07137; Rho-1, Lin et al. 2024, arXiv 2404.07965).
    "excess_aware": Objective(score="excess"),
    # Ours (docs/study-better-method.md): maximum likelihood where a cross-fitted reference gives the label at least .1 more
    # probability than the base does, so on what can be learned and is not chance; self-distillation on the rest and the prompt.
    "gain_aware": Objective(score="probability_gain", threshold_value=0.1, prompt_tokens="distil_only"),
    # Selective token masking: only tokens whose perplexity under the base is at most 2.5 (Wu et al. 2025, arXiv 2501.14315).
    "stm": Objective(select="low", score="teacher_nll", scope="dataset", threshold_nats=math.log(2.5), distil_on="none"),
    # Control for masked_mle: as many tokens, chosen by chance.
    "random_mask": Objective(select="random", distil_on="none"),
    # Dynamic fine-tuning: each token's loss times its own detached probability (Wu et al. 2025, arXiv 2508.05629).
    "dft": Objective(select="all", token_weight="probability", distil_on="none"),
    # Entropy-adaptive fine-tuning: each token's loss times the detached entropy of the student's 20 most likely tokens, as a
    # share of log 20 (Diao et al. 2026, arXiv 2601.02151).
    "eaft": Objective(select="all", token_weight="entropy", distil_on="none"),
}
