"""The one typed schema of params.yaml. Unknown keys, impossible combinations and values out of range are errors.

Each section is what some stages take; dvc.yaml lists the same sections under `params:`, so editing one reruns those stages only.
`cache_plan`, `cache_export` and `routing` belong to commands that are no stages.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from components.artifacts import ARTIFACTS, ROOT
from components.data_params import DataContractParams, DataParams
from components.errors import ParamsError
from components.param_secrets import refuse_secrets
from components.param_types import CellName, Count, Section, Weight
from components.run_params import LaunchParams, RoutingParams

PARAMS_FILE = ROOT / "params.yaml"

RESERVED_COLUMNS = (
    "reference_nll",
    "reference_entropy",
    "mutual_information",
    "record_starts",
    "record_names",
    "fingerprint",
)
"""Names in artifacts/token_scores and in the rows of a user's file that mean something already."""


class WorldParams(Section):
    """The embedded world: how hard it is, and how much of it there is."""

    seed: int = 0
    num_symbols: Annotated[int, Field(ge=8, le=64)] = 12
    max_symbols_per_item: Annotated[int, Field(ge=2, le=8)] = 4
    slip_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    num_train_examples: Count = 240
    num_validation_examples: Count = 48
    num_test_examples: Count = 150
    num_ood_items_per_task: Count = 60


class BaseModelParams(Section):
    """Where the base model comes from: made here (`embedded`), a folder (`local`) or a pinned hub repository (`hub`)."""

    source: Literal["embedded", "local", "hub"] = "embedded"
    path: str = "inputs/base_model"
    hub_id: str | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    architecture: Literal["llama", "gemma2", "gemma3", "phi3"] = "llama"
    hidden_size: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    num_layers: Count = 2
    num_heads: Count = 4
    num_steps: Count = 1500
    batch_size: Count = 64
    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 3e-3
    seed: int = 0

    @model_validator(mode="after")
    def _hub_is_pinned(self) -> Self:
        if self.source == "hub" and not (self.hub_id and self.revision):
            raise ValueError("source 'hub' needs hub_id and revision (the 40 hexadecimal digits of a commit, never a branch)")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class TeacherCacheParams(Section):
    """How much of the teacher's law a token keeps: entries until at most `tail_mass` is left outside, `max_entries` at most."""

    source: Literal["capture", "distillkit", "vllm"] = "capture"
    """`capture`: one forward pass of the base; the others import laws that somebody else has stored, from `import_path`."""
    import_path: str = "inputs/teacher_laws"
    max_entries: Annotated[int, Field(ge=1, le=255)] = 64
    tail_mass: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.03
    probability_bits: Literal[8, 12, 16] = 12
    temperature: Annotated[float, Field(gt=0.0, le=20.0)] = 1.0
    positions: Literal["targets", "all"] = "targets"
    """`all` also keeps the laws at prompt positions, which `prompt_tokens: distil_only` needs."""
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_tokens: Count = 8192
    shard_tokens: Count = 1_000_000

    @model_validator(mode="after")
    def _imported_laws_are_at_temperature_one(self) -> Self:
        if self.source != "capture" and self.temperature != 1.0:
            raise ValueError(
                f"temperature {self.temperature} needs source: capture; laws from {self.source} are stored at temperature 1, "
                "and the top entries alone do not tell another"
            )
        return self


class CachePlanParams(Section):
    """`python -m flows.plan_cache`: what a cache would cost, from a probe of some rows. No stage reads this."""

    num_records: Annotated[int, Field(ge=8)] = 128
    num_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Passes over the data that a run is planned with; None takes training.num_steps as it is."""


class CacheExportParams(Section):
    """`python -m flows.export_cache`: the cache as one parquet file for other tools. No stage reads this."""

    path: Annotated[str, Field(pattern=r"\.parquet$")] = ".work/export/teacher_cache.parquet"

    @field_validator("path")
    @classmethod
    def _not_among_artifacts(cls, path: str) -> str:
        if (ROOT / path).resolve().is_relative_to(ARTIFACTS.resolve()):
            raise ValueError("artifacts/ holds what stages make, and DVC deletes it before they rerun; give a path outside")
        return path


class TokenScoresParams(Section):
    """Scores of training tokens that need other models: a reference's loss, an ensemble's disagreement, or your own columns.

    `cross_fit`: `num_members` students, each trained with plain fine-tuning on a random half of the rows; a token is scored by
    the members that have not seen its row. `local`: the model folder at `reference_path` is the reference.
    The paths are never null: DVC watches what lies there, used or not (as it does with data.path).
    """

    reference: Literal["none", "cross_fit", "local"] = "none"
    reference_path: str = "inputs/reference_model"
    num_members: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    num_steps: Count = 100
    columns: tuple[CellName, ...] = ()
    """Names of your own columns, read from `columns_path`; none are read without a name."""
    columns_path: str = "inputs/token_columns"
    """A .jsonl file, or a folder of them: {"fingerprint": <of the row>, "<column>": [one number per target token]}."""
    seed: int = 0

    @model_validator(mode="after")
    def _columns_have_names_of_their_own(self) -> Self:
        for name in self.columns:
            if name in RESERVED_COLUMNS:
                raise ValueError(f"columns: {name!r} is made by Ballast itself; give your column another name")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns must not repeat a name, found {list(self.columns)}")
        return self


class ObjectiveParams(Section):
    """One column of the grid: a preset and the knobs that differ from it (None keeps the preset's own value).

    What the knobs mean is in components/objectives/objective.py; combinations are checked by components/objectives/resolve.py.
    """

    preset: Literal[
        "sft",
        "sft_kl",
        "masked_mle",
        "uncertainty_aware",
        "uncertainty_aware_static",
        "excess_aware",
        "gain_aware",
        "stm",
        "random_mask",
        "dft",
        "eaft",
    ]
    select: Literal["high", "low", "random"] | None = None
    score: (
        Literal[
            "student_nll",
            "teacher_nll",
            "excess",
            "teacher_excess",
            "probability_gain",
            "entropy",
            "mutual_information",
            "column",
        ]
        | None
    ) = None
    column: CellName | None = None
    keep: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    threshold_nats: float | None = None
    threshold_value: float | None = None
    scope: Literal["step_lagged", "micro_batch", "sequence", "dataset"] | None = None
    token_weight: Literal["none", "probability", "entropy"] | None = None
    distil_on: Literal["rest", "all", "selected", "none"] | None = None
    distil_weight: Weight | None = None
    distil_weight_final: Weight | None = None
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew"] | None = None
    teacher: Literal["cache", "online"] | None = None
    temperature: Annotated[float, Field(gt=0.0, le=20.0)] | None = None
    normalizer: Literal["target_tokens", "selected_tokens"] | None = None
    prompt_tokens: Literal["ignore", "distil_only"] | None = None
    protect: tuple[Literal["end_of_turn", "format", "digit", "first"], ...] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None


class LoraParams(Section):
    enabled: bool = False
    rank: Count = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


class EarlyStoppingParams(Section):
    """Stop when the validation nll has not fallen by `min_delta_nats` for `patience` looks; the best weights are kept."""

    enabled: bool = False
    every_steps: Count = 50
    patience: Count = 3
    min_delta_nats: Weight = 0.0


class ProbeParams(Section):
    """What is looked at during training, on a few training rows: scores against the truth, the mask, tokens for the heat map."""

    every_steps: Count = 50
    num_rows: Count = 48
    num_examples: Annotated[int, Field(ge=0)] = 3
    num_dropout_members: Annotated[int, Field(ge=0)] = 4
    """Monte Carlo members whose disagreement each look records, where the model has dropout modules that drop; 0: none."""

    @model_validator(mode="after")
    def _members_can_disagree(self) -> Self:
        if self.num_dropout_members == 1:
            raise ValueError("num_dropout_members 1: one member disagrees with nobody; give 0 (none) or 2 and more")
        return self


class TrainingParams(Section):
    num_steps: Count = 300
    batch_size: Count = 16
    micro_batch_size: Count = 16
    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-3
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    weight_decay: Weight = 0.0
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    save_every_steps: Count = 100
    log_every_steps: Count = 10
    packing: bool = False
    """Rows of a micro-batch in one sequence, without padding; positions restart and attention stays within each row."""
    early_stopping: EarlyStoppingParams = EarlyStoppingParams()
    lora: LoraParams = LoraParams()

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}")
        return self


class BaseTextParams(Section):
    """What the base writes by itself, kept once: how likely a student still finds it says how much of the base is left."""

    num_texts: Annotated[int, Field(ge=0)] = 64
    num_tokens: Count = 64
    seed: int = 0


class EvaluationParams(Section):
    batch_tokens: Count = 16384
    max_items_per_set: Count = 500
    num_ece_bins: Annotated[int, Field(ge=2, le=100)] = 15
    max_new_tokens: Count = 256
    """Where a generated answer is cut; an answer that has not ended by then is counted as unfinished."""
    generation_batch_size: Count = 16
    lm_eval_tasks: tuple[str, ...] = ()
    """Names of lm-evaluation-harness tasks, each an OOD set; needs `make install-lm-eval`."""
    lm_eval_tasks_path: str = "inputs/lm_eval_tasks"
    """A folder of lm-evaluation-harness YAML tasks of your own, which `lm_eval_tasks` may name."""
    lm_eval_num_fewshot: Annotated[int, Field(ge=0)] | None = None


class ComparisonParams(Section):
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    num_resamples: Annotated[int, Field(ge=100)] = 2000
    seed: int = 0
    correction: Literal["holm", "none"] = "holm"
    """How the verdicts of many differences are kept from finding one by chance."""
    power: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.8
    """Chance of finding a difference as large as the minimum detectable one."""


class GateMargins(Section):
    """Against one reference: how much better in-domain, and how much worse outside at most (whole interval on the good side)."""

    min_in_domain_gain: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    """Negative: non-inferiority by that margin is enough."""
    max_ood_loss: Weight = 0.02
    max_ood_set_loss: Weight | None = None
    """The same for every single OOD set; None asks about their mean only."""


class RegistrationParams(Section):
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "ballast"
    candidate: CellName = "uncertainty_aware"
    in_domain_metric: Literal["accuracy", "exact_match", "nll"] = "accuracy"
    against_base: GateMargins = GateMargins()
    against_champion: GateMargins = GateMargins()
    promote: Literal["by_hand", "when_gate_passes"] = "by_hand"


class ComputeParams(Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: Annotated[int, Field(ge=0)] = 1
    """Threads of torch on the CPU; 0 leaves torch's own choice. On small models one thread often beats two."""


class Params(Section):
    presets: Annotated[tuple[CellName, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    world: WorldParams
    base_model: BaseModelParams
    data: DataParams
    data_contract: DataContractParams
    teacher_cache: TeacherCacheParams
    cache_plan: CachePlanParams
    cache_export: CacheExportParams
    token_scores: TokenScoresParams
    objective: dict[CellName, ObjectiveParams]
    training: TrainingParams
    probe: ProbeParams
    base_text: BaseTextParams
    evaluation: EvaluationParams
    comparison: ComparisonParams
    registration: RegistrationParams
    compute: ComputeParams
    launch: LaunchParams = LaunchParams()
    routing: RoutingParams = RoutingParams()

    @model_validator(mode="after")
    def _grid_is_whole(self) -> Self:
        for name in self.presets:
            if name not in self.objective:
                raise ValueError(f"presets names {name!r}, but objective has only {sorted(self.objective)}")
        if "base" in self.presets:
            raise ValueError("presets: 'base' is the name of the untrained model, choose another")
        if len(set(self.presets)) != len(self.presets) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("presets and seeds must not repeat an entry")
        if self.registration.candidate not in self.presets:
            raise ValueError(f"registration.candidate {self.registration.candidate!r} is not one of presets {list(self.presets)}")
        if self.data.source == "embedded" and self.base_model.source != "embedded":
            raise ValueError(
                "data.source 'embedded' is the language of the embedded base; with your own model set data.source: files"
            )
        return self

    @model_validator(mode="after")
    def _ranks_share_a_step(self) -> Self:
        training = self.training
        self.launch.refuse_what_cannot_be_shared(
            training.batch_size, training.micro_batch_size, stops_early=training.early_stopping.enabled
        )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml; every fault is named with its key and value."""
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing. Get the default back with: git checkout -- {path.name}") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    except yaml.YAMLError as error:
        refuse_secrets(path, text)
        raise ParamsError(f"{path} is not valid YAML: {_explain_yaml(error)}") from None
    refuse_secrets(path, text, raw)
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must be a mapping of sections, found {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(_explain(path, error)) from None


def _explain_yaml(error: yaml.YAMLError) -> str:
    """Without the text around the fault, which may be a password."""
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
    return f"{getattr(error, 'problem', None) or type(error).__name__}{place}"


def _explain(path: Path, error: ValidationError) -> str:
    lines = [_explain_one(path, fault) for fault in error.errors(include_url=False)]
    return "\n".join([*lines, f"Mend {path.name} (or the -S override) and run the same command again."])


def _explain_one(path: Path, fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
    value = fault["input"]
    shown = f" (found {value!r})" if isinstance(value, str | int | float | bool) or value is None else ""
    return f"{path.name}: {place}: {fault['msg'].removeprefix('Value error, ')}{shown}"
