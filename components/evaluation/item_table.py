"""The evaluation of one model on disk: figures in <model>.json, items in <model>.parquet (a row each, with its set).

The items are the larger part by far, and a table is read by every tool. In memory both are one: `sets[name]["items"]`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.artifacts import EVALUATIONS, read_json, write_json, write_whole
from components.errors import ArtifactError
from components.plain_names import plain_name

ITEM_COLUMNS = pa.schema(
    [
        ("item_id", pa.string()),
        ("kind", pa.string()),
        ("nll_sum", pa.float64()),
        ("num_tokens", pa.int64()),
        ("num_correct", pa.float64()),
        ("num_scored", pa.int64()),
        ("drift_sum", pa.float64()),
        ("exact_match", pa.int64()),
        ("num_generated", pa.int64()),
        ("is_finished", pa.bool_()),
        ("answer", pa.string()),
        ("expected", pa.string()),
    ]
)
_SCHEMA = pa.schema([("set", pa.string()), *ITEM_COLUMNS])


def write_evaluation(name: str, result: Mapping[str, Any], folder: Path | None = None) -> None:
    """Figures without items to <name>.json, items to <name>.parquet; each whole or not at all, the table first."""
    folder, name = folder or EVALUATIONS, plain_name(name, "an evaluation")
    sets: Mapping[str, Any] = result.get("sets", {})
    rows = [{"set": set_name, **item} for set_name, one in sets.items() for item in one["items"]]
    columns = [pa.array([row.get(column.name) for row in rows], type=column.type) for column in _SCHEMA]
    with write_whole(folder / f"{name}.parquet") as file:
        pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), file, compression="zstd")
    bare = {
        set_name: {**{key: value for key, value in one.items() if key != "items"}, "num_items": len(one["items"])}
        for set_name, one in sets.items()
    }
    write_json(folder / f"{name}.json", {**result, "sets": bare} if sets else dict(result))


def read_evaluation(name: str, made_by: str = "evaluate_ood", folder: Path | None = None) -> dict[str, Any]:
    """The evaluation of a model with its items; of a model that is not there `{"absent": <why>}`."""
    folder, name = folder or EVALUATIONS, plain_name(name, "an evaluation")
    result: dict[str, Any] = read_json(folder / f"{name}.json", made_by=made_by)
    if isinstance(result, dict) and "absent" in result:
        return result
    again = f"Make it again with: dvc repro -f -s {made_by}"
    if not isinstance(result, dict) or not isinstance(result.get("sets"), dict):
        raise ArtifactError(f"{folder / f'{name}.json'} is no evaluation. {again}")
    file = folder / f"{name}.parquet"
    items: dict[str, list[dict[str, Any]]] = {set_name: [] for set_name in result["sets"]}
    for row in _read_table(file, again):
        items.setdefault(row.pop("set"), []).append(row)
    for set_name, rows in items.items():
        if set_name not in result["sets"] or result["sets"][set_name].get("num_items") != len(rows):
            raise ArtifactError(f"{file} holds {len(rows)} items of {set_name}, which is not what {name}.json says. {again}")
        result["sets"][set_name]["items"] = rows
    return result


def _read_table(file: Path, again: str) -> list[dict[str, Any]]:
    """Its rows; column by column, which is several times faster than row by row."""
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ArtifactError(f"{file} {what}. {again}") from None
    if table.schema.names != _SCHEMA.names:
        raise ArtifactError(f"{file} has the columns {table.schema.names}, not those of items. {again}")
    columns = [column.to_pylist() for column in table.columns]
    return [dict(zip(_SCHEMA.names, values, strict=True)) for values in zip(*columns, strict=True)]
