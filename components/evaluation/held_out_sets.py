"""Which sets a model is evaluated on: validation and in-domain test splits, the base's own texts, and one OOD set per file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import DATA, ROOT
from components.data.held_out import list_ood_files
from components.data.tokenized import read_split
from components.data_params import DataParams
from components.evaluation.answers import prompt_of_row
from components.evaluation.base_text import read_base_text
from components.evaluation.headline import OOD_PREFIX
from components.evaluation.items import EvaluationItem, EvaluationSet, ItemRow, item_of_row
from components.evaluation.tasks import read_ood_set
from components.models import load_reference_model
from components.params import TokenScoresParams

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ood_path(data: DataParams) -> Path:
    """The OOD files: those of the embedded world, or the user's."""
    return DATA / "ood" if data.source == "embedded" else ROOT / data.ood_path


def read_sets(data: DataParams, tokenizer: "PreTrainedTokenizerBase", max_items: int) -> dict[str, EvaluationSet]:
    """Set name -> items; the same for every model, so that results can be paired."""
    sets = {"validation": read_rows("validation", max_items), "in_domain": read_rows("test", max_items, tokenizer)}
    if texts := read_base_text(tokenizer):
        sets["base_text"] = texts
    for name, file in name_ood_files(ood_path(data)).items():
        sets[OOD_PREFIX + name] = read_ood_set(file, tokenizer, data.max_length, max_items)
    return sets


def read_rows(split: str, max_items: int, tokenizer: "PreTrainedTokenizerBase | None" = None) -> EvaluationSet:
    """The first rows of a prepared split; given the tokenizer, those that end in `#### <answer>` are answered freely, too."""
    rows = read_split(DATA, split)
    taken = [rows[index] for index in range(min(len(rows), max_items))]
    if tokenizer is None:
        return EvaluationSet(item_of_row(row) for row in taken)
    return EvaluationSet(item_of_row(row, prompt_of_row(ItemRow(row.input_ids, row.is_target), tokenizer)) for row in taken)


def load_reference(
    params: TokenScoresParams,
    tokenizer: "PreTrainedTokenizerBase",
    sets: Mapping[str, Sequence[EvaluationItem]],
    device: "torch.device",
) -> "PreTrainedModel | None":
    """The user's own reference; None where there is none. Cross-fitted members have scored the training rows and are gone."""
    if params.reference != "local":
        return None
    longest = max((len(row.input_ids) for items in sets.values() for item in items for row in item.gold_rows), default=0)
    return load_reference_model(ROOT / params.reference_path, tokenizer, longest, device=device)


def name_ood_files(root: Path) -> dict[str, Path]:
    """Set name -> file: the path below `root` without its suffix, which only sets of otherwise equal names keep."""
    files = list_ood_files(root)
    paths = [Path(file.name) if file == root else file.relative_to(root) for file in files]
    stems = [path.with_suffix("").as_posix() for path in paths]
    names = [stem if stems.count(stem) == 1 else path.as_posix() for stem, path in zip(stems, paths, strict=True)]
    return dict(zip(names, files, strict=True))
