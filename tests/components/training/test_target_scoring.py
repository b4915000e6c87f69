"""Laws of looking at a student: a literal pass gives the same, nothing but targets is held, and no trace is left."""

import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from components.data.training_rows import count_targets
from components.objectives.sparse_target import TeacherTargets
from components.training import target_scoring
from components.training.target_scoring import Laws, ScoredTokens, batches, score_targets
from components.uncertainty.scores import kl_divergence
from tests.conftest import PAD, VOCABULARY, build_model, build_rows, end_of_child, start_child


@dataclass(frozen=True)
class Seen:
    """A row to score."""

    input_ids: list[int]
    is_target: list[bool]
    laws: Laws | None = None
    teacher: TeacherTargets | None = None


def dense_teacher(row: Any, seed: int, temperature: float = 1.0) -> TeacherTargets:
    """The whole law of a teacher as entries (K = V), its tail empty."""
    logprobs_NV = teacher_laws(row, seed, temperature)
    ids_NV = torch.arange(VOCABULARY).expand(len(logprobs_NV), -1)
    empty_N = torch.full((len(logprobs_NV),), -math.inf)
    return TeacherTargets(ids_NV.int(), logprobs_NV, empty_N, torch.zeros(len(logprobs_NV)))


def teacher_laws(row: Any, seed: int, temperature: float) -> torch.Tensor:
    shape = (count_targets(row), VOCABULARY)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / temperature).log_softmax(1)


def rows(temperature: float = 1.0) -> list[Seen]:
    """Unequal lengths, one row without a target, one with a law for each target; all with a teacher."""
    made = []
    for number, row in enumerate(build_rows(12, seed=5)):
        is_target = [False] * len(row.input_ids) if number == 3 else row.is_target
        laws = [{row.input_ids[-1]: 0.75, 7: 0.25}] * sum(is_target) if number == 5 else None
        made.append(Seen(row.input_ids, is_target, laws, dense_teacher(Seen(row.input_ids, is_target), number, temperature)))
    return made


def literal(model: nn.Module, row: Seen, seed: int, temperature: float) -> ScoredTokens:
    """One row alone, one target after the other."""
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    columns: dict[str, list[float]] = {field.name: [] for field in fields(ScoredTokens)}
    positions = [position for position, is_target in enumerate(row.is_target) if is_target]
    for number, position in enumerate(positions):
        q = logits_TV[position - 1].log_softmax(0)
        cool = (logits_TV[position - 1] / temperature).log_softmax(0)
        label = row.input_ids[position]
        top = sorted(q.exp().tolist(), reverse=True)[:20]
        columns["nll"].append(-float(q[label]))
        columns["entropy"].append(-sum(math.exp(one) * one for one in q.tolist()))
        columns["top_entropy"].append(-sum(p / sum(top) * math.log(p / sum(top)) for p in top))
        columns["confidence"].append(top[0])
        columns["is_correct"].append(float(int(q.argmax()) == label))
        columns["brier"].append(sum((math.exp(one) - (token == label)) ** 2 for token, one in enumerate(q.tolist())))
        law = row.laws[number] if row.laws else None
        columns["true_entropy"].append(-sum(p * math.log(p) for p in law.values()) if law else math.nan)
        columns["true_kl"].append(sum(p * (math.log(p) - float(q[t])) for t, p in law.items()) if law else math.nan)
        teacher_V = teacher_laws(row, seed, temperature)[number].double()
        columns["teacher_kl"].append(float(kl_divergence(teacher_V[None], cool[None])))
    return ScoredTokens(**{name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()})


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("batch_tokens", "entries"), [(1, 1 << 26), (60, 1 << 26), (8192, 1 << 26), (8192, 3 * VOCABULARY), (60, 1)]
)
def test_statistics_are_those_of_each_row_alone(
    batch_tokens: int, entries: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_scoring, "CHUNK_ENTRIES", entries)
    model, scored = build_model(seed=1).eval(), rows(temperature)
    found = score_targets(model, scored, pad_token_id=PAD, batch_tokens=batch_tokens, temperature=temperature)
    for index, (one, row) in enumerate(zip(found, scored, strict=True)):
        wanted = literal(model, row, index, temperature)
        for field in fields(ScoredTokens):
            torch.testing.assert_close(
                getattr(one, field.name).double(), getattr(wanted, field.name), rtol=0, atol=5e-5, equal_nan=True, msg=field.name
            )


@pytest.mark.parametrize("entries", [1 << 26, 10 * VOCABULARY, 1])
def test_no_more_logits_are_made_than_a_chunk_of_targets(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_scoring, "CHUNK_ENTRIES", entries)
    model, scored = build_model(seed=1), rows()
    made: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: made.append(out.numel()))
    score_targets(model, scored, pad_token_id=PAD, batch_tokens=8192)
    assert sum(made) == VOCABULARY * sum(count_targets(row) for row in scored), "each target's logits once, no other's"
    assert max(made) <= max(entries, VOCABULARY)


def test_a_softcap_is_applied_as_the_model_does() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    config = Gemma2Config(
        vocab_size=VOCABULARY, num_key_value_heads=2, final_logit_softcapping=0.5, initializer_range=1.0, pad_token_id=0, **sizes
    )
    model = Gemma2ForCausalLM(config).eval()
    row = rows()[0]
    [found] = score_targets(model, [row], pad_token_id=PAD, batch_tokens=100)
    torch.testing.assert_close(found.nll.double(), literal(model, row, 0, 1.0).nll, rtol=0, atol=5e-5)


def test_no_trace_is_left() -> None:
    model = build_model(seed=1, attention_dropout=0.5)
    model.train()
    model.model.layers[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first, second = (score_targets(model, rows(), pad_token_id=PAD, batch_tokens=100) for _ in range(2))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_output_embeddings()._forward_pre_hooks
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.nll, other.nll) and not one.nll.requires_grad


def test_the_head_is_freed_when_the_model_fails() -> None:
    model = build_model(seed=1)
    model.get_output_embeddings().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_targets(model, rows(), pad_token_id=PAD, batch_tokens=100)
    assert not model.get_output_embeddings()._forward_pre_hooks and model.training


def test_a_model_with_adapters_is_scored_with_them() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model: Any = get_peft_model(build_model(seed=1), settings).eval()
    row = rows()[0]
    [found] = score_targets(model, [row], pad_token_id=PAD, batch_tokens=100)
    torch.testing.assert_close(found.nll.double(), literal(model, row, 0, 1.0).nll, rtol=0, atol=5e-5)


def test_batches_hold_every_row_with_a_target_once_within_both_limits() -> None:
    scored = rows()
    for batch_tokens, max_targets in ((1, 1), (50, 100), (200, 20), (10_000, 10_000)):
        made = list(batches(scored, batch_tokens, max_targets))
        assert sorted(index for batch in made for index in batch) == [i for i, row in enumerate(scored) if count_targets(row)]
        for batch in made:
            if len(batch) > 1:
                assert len(batch) * max(len(scored[i].input_ids) for i in batch) <= batch_tokens
                assert sum(count_targets(scored[i]) for i in batch) <= max_targets


def test_a_first_token_that_is_marked_is_no_target_and_its_law_is_left_out() -> None:
    model = build_model(seed=1).eval()
    [found] = score_targets(
        model, [Seen([4, 5, 6], [True, False, True], [{4: 1.0}, {6: 0.5, 2: 0.5}])], pad_token_id=PAD, batch_tokens=100
    )
    assert found.true_entropy.tolist() == pytest.approx([math.log(2)])


def test_no_rows_give_nothing() -> None:
    assert score_targets(build_model(), [], pad_token_id=PAD, batch_tokens=100) == []


def score_on_rank(rank: int, folder: Path) -> None:
    """One of two ranks that share the weights (FSDP2); `start_child` gives it a process of its own."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    model = build_model(seed=1)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    shard = next(model.parameters()).to_local()
    assert shard.numel() < next(model.parameters()).numel(), "not sharded"
    found = score_targets(model, rows(), pad_token_id=PAD, batch_tokens=60)
    torch.save([one.nll for one in found], folder / f"rank-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.multi_process
def test_ranks_that_share_the_weights_see_what_one_process_sees(tmp_path: Path) -> None:
    children = [start_child(partial(score_on_rank, rank, tmp_path)) for rank in range(2)]
    assert [end_of_child(child) for child in children] == [0, 0]
    alone = score_targets(build_model(seed=1), rows(), pad_token_id=PAD, batch_tokens=60)
    for rank in range(2):
        for found, wanted in zip(torch.load(tmp_path / f"rank-{rank}.pt"), alone, strict=True):
            torch.testing.assert_close(found, wanted.nll, rtol=0, atol=1e-5)
