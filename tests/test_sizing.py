"""The sizing's formulas beside real tensors, what its choices keep to, and that docs/sizing.md says what the command says."""

from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.sizing import main, own_model, page, parse
from benchmarks.sizing_checks import (
    SMALL,
    check_cache,
    check_parameters,
    check_plain_head,
    check_saved,
    check_sharded_copies,
    check_state,
    small_setup,
)
from benchmarks.sizing_layout import GB, Machine, choose_layout, fits, run_hours
from benchmarks.sizing_memory import Setup, gpu_memory, plain_head_bytes, state_bytes
from benchmarks.sizing_models import MODELS, Architecture
from benchmarks.sizing_work import CONSERVATIVE, DATA, GOAL, Data, Evaluation, Grid, break_even_epochs, step_seconds, step_traffic
from components.artifacts import ROOT

MODEL = MODELS["llama-3.2-1b"]
LARGE = MODELS["llama-3.1-8b"]
ROWS: Data = DATA["sharegpt"]
architectures = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_parameters_are_those_of_the_transformers_model(model: Architecture) -> None:
    check = check_parameters(model)
    assert check.formula == check.real


@pytest.mark.parametrize(("name", "published"), [("llama-3.2-1b", 1.23e9), ("gemma-2-2b", 2.61e9), ("llama-3.1-8b", 8.03e9)])
def test_parameters_are_the_published_ones(name: str, published: float) -> None:
    assert MODELS[name].parameters == pytest.approx(published, rel=0.005)


@architectures
def test_the_state_is_what_torch_holds_after_a_step(model: Architecture) -> None:
    assert check_state(model).ratio == pytest.approx(1, abs=0.001)


@architectures
@pytest.mark.parametrize(
    "changes", [{"precision": "fp32"}, {"precision": "bf16"}, {"is_lora": True}], ids=["fp32", "bf16", "bf16 LoRA"]
)
def test_activations_and_copies_are_what_the_graph_keeps(model: Architecture, changes: dict[str, object]) -> None:
    for check in check_saved(model, small_setup(model, **changes)):
        assert check.ratio == pytest.approx(1, abs=0.05), check


def test_fsdp2_under_autocast_keeps_whole_bf16_copies_of_all_linears() -> None:
    check = check_sharded_copies(SMALL["LLaMA"])
    assert check.formula == check.real


def test_the_plain_loss_holds_six_times_the_logits() -> None:
    assert check_plain_head().ratio == pytest.approx(1, abs=0.02)


def test_the_cache_is_as_large_as_a_real_one() -> None:
    assert check_cache(SMALL["LLaMA"]).ratio == pytest.approx(1, abs=0.02)


def test_sharding_divides_the_state_and_ddp_does_not() -> None:
    alone = sum(state_bytes(Setup(MODEL)))
    assert alone == 16 * MODEL.parameters
    assert sum(state_bytes(Setup(MODEL, "ddp", 8))) == alone
    for engine in ("fsdp2", "fsdp2_bf16", "zero3"):
        assert sum(state_bytes(Setup(MODEL, engine, 8))) == alone / 8


def test_fsdp2_keeps_whole_gradients_while_micro_batches_accumulate() -> None:
    one, two = (sum(state_bytes(Setup(MODEL, "fsdp2", 8, micro_batches=number))) for number in (1, 2))
    assert two - one == 4 * MODEL.parameters


def test_an_online_teacher_is_a_whole_base_on_every_gpu_but_nothing_with_lora() -> None:
    def added(setup: Setup) -> float:
        return gpu_memory(replace(setup, has_online_teacher=True)).teacher

    assert added(Setup(MODEL, "fsdp2", 64)) > 4 * MODEL.parameters
    assert added(Setup(MODEL, is_lora=True)) < MODEL.parameters


def test_checkpointing_lora_and_the_fused_head_never_need_more() -> None:
    for model in MODELS.values():
        setup = Setup(model)
        assert gpu_memory(replace(setup, is_checkpointed=True)).total < gpu_memory(setup).total
        assert gpu_memory(replace(setup, is_lora=True)).total < gpu_memory(setup).total
        assert gpu_memory(setup).head < plain_head_bytes(setup)


def test_a_ring_sends_less_than_it_handles_and_one_gpu_sends_nothing() -> None:
    assert step_traffic(Setup(MODEL), GOAL).num_bytes == 0
    assert step_traffic(Setup(MODEL, "ddp", 2), GOAL).num_bytes == 4 * MODEL.parameters
    assert step_traffic(Setup(MODEL, "fsdp2", 2), GOAL).num_bytes == (2 * 4 + 4) * MODEL.parameters / 2
    assert step_traffic(Setup(MODEL, "fsdp2_bf16", 2), GOAL).num_bytes == (2 * 2 + 4) * MODEL.parameters / 2


@pytest.mark.parametrize("is_lora", [False, True])
def test_what_is_chosen_fits_and_more_gpus_never_take_longer(is_lora: bool) -> None:
    hours = []
    for num_gpus in (1, 2, 4, 8, 16, 32, 64):
        machine = Machine(num_gpus, gpu_bytes=141 * GB)
        layout = choose_layout(Setup(MODEL, is_lora=is_lora), machine, ROWS, Grid())
        assert layout is not None and fits(layout.memory, machine)
        assert layout.setup.num_gpus * layout.cells_at_once <= num_gpus
        assert layout.setup.num_gpus * layout.setup.micro_tokens * layout.setup.micro_batches == Grid().step_tokens
        hours.append(run_hours(layout, machine, ROWS, Grid(), CONSERVATIVE, Evaluation()).training)
    assert all(later <= 1.1 * earlier for earlier, later in pairwise(hours)), hours


def test_eight_billion_weights_do_not_train_on_one_gpu_but_their_adapter_does() -> None:
    machine = Machine(1)
    assert choose_layout(Setup(LARGE), machine, ROWS, Grid()) is None
    assert choose_layout(Setup(LARGE, is_lora=True), machine, ROWS, Grid()) is not None


def test_the_goal_is_never_slower_than_the_conservative_rates() -> None:
    machine = Machine(8, gpu_bytes=141 * GB)
    layout = choose_layout(Setup(LARGE), machine, ROWS, Grid())
    assert layout is not None
    best, worst = (run_hours(layout, machine, ROWS, Grid(), rates, Evaluation()) for rates in (GOAL, CONSERVATIVE))
    for part in ("capture", "training", "evaluation", "transfer", "total"):
        assert getattr(best, part) < getattr(worst, part)


def test_the_cache_pays_within_the_default_grid() -> None:
    epochs = break_even_epochs(Setup(MODEL, micro_batches=8, predicted_share=ROWS.target_share), ROWS, Grid(), GOAL)
    assert epochs is not None and epochs < Grid().num_epochs * Grid().num_distilling * Grid().num_seeds


def test_a_model_of_ones_own_is_sized_like_the_same_model_of_ours() -> None:
    assert own_model("2048,8192,16,32,8,64,128256,yes").parameters == MODEL.parameters


@pytest.mark.parametrize("words", ["2048,8192", "2048,8192,16,32,8,64,128256,perhaps", "a,b,c,d,e,f,g,yes"])
def test_a_model_that_cannot_be_read_is_refused_with_an_example(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--own", words])
    assert "2048,8192,16" in capsys.readouterr().err


def test_the_page_says_what_the_command_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    written = set((ROOT / "docs" / "sizing.md").read_text(encoding="utf-8").splitlines())
    monkeypatch.setattr("sys.argv", ["sizing"])
    main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    larger = page(parse(["--gpu-gigabytes", "141"])).splitlines()
    assert len(printed) > 40
    missing = [line for line in [*printed, *larger[:20]] if line not in written]
    assert missing == [], "make docs/sizing.md anew: python -m benchmarks.sizing"


def test_recomputing_and_an_online_teacher_each_cost_about_a_forward_pass() -> None:
    plain, _ = step_seconds(Setup(MODEL), 389, GOAL)
    for changes in ({"is_checkpointed": True}, {"has_online_teacher": True}):
        assert 1.2 < step_seconds(replace(Setup(MODEL), **changes), 389, GOAL)[0] / plain < 1.34
