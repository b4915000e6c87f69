"""Probes like those of `post_train`, from words and laws of the embedded world, without a model: losses follow a simple rule.

A token that its law determines starts at the base's loss and is unlearned uncertainty that decays; a drawn token keeps its own
surprise. So the mask's score follows what is left to learn early and noise late, as it does in training.
"""

import math
import random
from typing import Any

import torch

from components.data.embedded_world import EmbeddedWorld, Example, Law, draw_splits
from components.params import WorldParams
from components.uncertainty.calibration import rank_correlation

CLASSES = ("end_of_turn", "first", "format", "digit", "word")
STEPS = (0, 50, 100, 150, 200, 250, 300)
MASKED = {"masked_mle": 0.5, "uncertainty_aware": 0.5}
DISTILS = ("sft_kl", "uncertainty_aware")


def fake_probe(
    preset: str, seed: int = 0, num_rows: int = 48, num_examples: int = 3, steps: tuple[int, ...] = STEPS
) -> dict[str, Any]:
    examples = draw_splits(EmbeddedWorld(WorldParams()))["train"][:num_rows]
    rows = [_row(example, index, random.Random(f"row {index}")) for index, example in enumerate(examples)]
    has_mask = preset in MASKED
    draw = random.Random(f"{preset}-{seed}")
    made, before = [], None
    shown: list[list[dict[str, Any]]] = [[] for _ in rows[:num_examples]]
    for step in steps:
        losses = [_losses(row, step, draw) for row in rows]
        threshold = (
            sorted(loss for row in losses for loss in row)[int((1 - MASKED[preset]) * sum(map(len, losses)))]
            if has_mask
            else None
        )
        chosen = [[threshold is None or loss >= threshold for loss in row] for row in losses]
        made.append(_step(step, rows, losses, chosen, before, threshold))
        before = [one for row in chosen for one in row]
        for place, line in enumerate(shown):
            rest = [0.5 * (preset in DISTILS and not (has_mask and one)) for one in chosen[place]]
            line.append(
                {
                    "step": step,
                    "score": losses[place] if has_mask else None,
                    "selected": chosen[place] if has_mask else None,
                    "mle_weight": [float(one) for one in chosen[place]],
                    "distil_weight": rest if preset in DISTILS else None,
                    "student_nll": losses[place],
                }
            )
    warning = {
        "step": 150,
        "kind": "follows_noise",
        "message": f"objective.{preset}: from step 150 on the mask ranks tokens more like noise than like what is left to learn",
    }
    return {
        "score": "student_nll",
        "select": "high" if has_mask else "all",
        "classes": list(CLASSES),
        "truth": "law",
        "num_rows": num_rows,
        "num_tokens": sum(map(len, losses)),
        "steps": made,
        "examples": [{**_example(row), "steps": line} for row, line in zip(rows, shown, strict=False)],
        "warnings": [warning] if has_mask else [],
    }


def _row(example: Example, index: int, draw: random.Random) -> dict[str, Any]:
    tokens: list[tuple[str, bool]] = [("<s>", False)]
    laws: list[Law] = []
    classes: list[str] = []
    teacher: list[float] = []
    for turn in example.turns:
        tokens += [(word, False) for word in ("<|user|>", *turn.question.split(), "<|end|>", "<|assistant|>")]
        answer = [*turn.answer.split(), "<|end|>"]
        tokens += [(word, True) for word in answer]
        for place, (word, law) in enumerate(zip(answer, turn.laws, strict=True)):
            laws.append(law)
            classes.append(_class(word, place))
            known = word in turn.question or word in (":", "plus", "####", "<|end|>") or len(law) > 1
            teacher.append(-math.log(law[word]) + (0.05 if known else 2.4) * draw.uniform(0.5, 1.5))
    return {"row_id": f"new_tasks.json:{index}", "tokens": tokens, "laws": laws, "classes": classes, "teacher_nll": teacher}


def _class(word: str, place: int) -> str:
    if word == "<|end|>":
        return "end_of_turn"
    if place == 0:
        return "first"
    if any(letter.isalpha() for letter in word):
        return "word"
    return "digit" if any(letter.isdigit() for letter in word) else "format"


def _noise(row: dict[str, Any]) -> list[float]:
    words = [text for text, is_target in row["tokens"] if is_target]
    return [-math.log(law[word]) for word, law in zip(words, row["laws"], strict=True)]


def _losses(row: dict[str, Any], step: int, draw: random.Random) -> list[float]:
    left = math.exp(-step / 70)
    pairs = zip(row["teacher_nll"], _noise(row), strict=True)
    return [
        round(noise * draw.uniform(0.3, 1.7) + (base - noise) * left * draw.uniform(0.3, 1.7) + 0.3 * draw.random() ** 4, 4)
        for base, noise in pairs
    ]


def _step(
    step: int, rows: list[Any], losses: list[Any], chosen: list[Any], before: list[bool] | None, threshold: float | None
) -> dict[str, Any]:
    flat = [one for row in chosen for one in row]
    names = [name for row in rows for name in row["classes"]]
    loss_N = torch.tensor([loss for row in losses for loss in row])
    noise_N = torch.tensor([noise for row in rows for noise in _noise(row)])
    left_N = torch.tensor([base for row in rows for base in row["teacher_nll"]]) - noise_N
    both = sum(now and then for now, then in zip(flat, before or [], strict=False))
    either = sum(now or then for now, then in zip(flat, before or [], strict=False))
    follows = {"epistemic": rank_correlation(loss_N, left_N), "aleatoric": rank_correlation(loss_N, noise_N)}
    if threshold is None:
        before = None
    return {
        "step": step,
        "epoch": step / 15,
        "threshold": threshold,
        "selected_fraction": sum(flat) / len(flat),
        "entered": None if before is None else sum(flat) - both,
        "left": None if before is None else sum(before) - both,
        "jaccard": None if before is None else both / either,
        "jaccard_epoch": None if before is None else 0.9 * both / either,
        "classes": {
            name: {
                "num_tokens": names.count(name),
                "selected_fraction": sum(one for one, own in zip(flat, names, strict=True) if own == name) / names.count(name),
            }
            for name in CLASSES
        },
        "scores": {"student_nll": follows},
        "mask": {"epistemic_share": 0.5, "known_share": 0.125, "noise_share": 0.375, "noise_coverage": 0.75},
        "kl_to_teacher": None,
        "validation": None,
    }


def _example(row: dict[str, Any]) -> dict[str, Any]:
    tokens = [{"text": text, "is_target": is_target} for text, is_target in row["tokens"]]
    return {"row_id": row["row_id"], "tokens": tokens, "classes": row["classes"], "teacher_nll": row["teacher_nll"]}
