"""Tables and pictures that MLflow's page shows beside a run, made from evaluations and their comparison; knows no MLflow."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANSWERS_PER_SET = 20
MAX_ANSWER_LENGTH = 1000
Table = dict[str, list[Any]]
"""`{"columns": [...], "data": [[...], ...]}`: the form of MLflow's own log_table."""


def make_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Rows with the columns of all, in the order they first appear; None without a row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]} if rows else None


def comparison_tables(comparison: Mapping[str, Any], gate: Mapping[str, Any]) -> dict[str, Table]:
    """Name -> table: methods side by side, differences with their intervals, the same for each set, what the gate asked."""
    tables = {
        "methods": make_table([_method_row(name, method) for name, method in comparison["methods"].items()]),
        "differences": make_table(comparison.get("differences", [])),
        "set_differences": make_table(comparison.get("set_differences", [])),
        "gate": make_table(gate.get("answers", [])),
    }
    return {name: table for name, table in tables.items() if table is not None}


def _method_row(name: str, method: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": name, "num_seeds": method["num_seeds"]}
    for metric, interval in method["metrics"].items():
        mean, low, high = (None if interval is None else interval.get(key) for key in ("mean", "low", "high"))
        row[metric] = mean
        if low is not None and high is not None:
            row[f"{metric} interval"] = f"{low:.4f} to {high:.4f}"
    return row


def answers_table(evaluation: Mapping[str, Any]) -> Table | None:
    """The first generated answers of each set, the same questions for every model; None where nothing was generated.

    `question` is set and item, by which MLflow's page puts the answers of two runs side by side.
    """
    rows = []
    for name, result in evaluation["sets"].items():
        asked = [item for item in result.get("items", []) if item.get("answer") is not None]
        rows += [_answer_row(name, item) for item in asked[:ANSWERS_PER_SET]]
    return make_table(rows)


def _answer_row(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    correct = item.get("exact_match")
    return {
        "question": f"{name} {item['item_id']}",
        "expected": item.get("expected"),
        "answer": str(item["answer"])[:MAX_ANSWER_LENGTH],
        "correct": None if correct is None else bool(correct),
    }


def calibration_figure(evaluation: Mapping[str, Any]) -> "Figure | None":
    """Accuracy over confidence in-domain and on each OOD set, with the diagonal of a calibrated model."""
    curves = {name: _bins(result) for name, result in evaluation["sets"].items() if name != "validation"}
    curves = {name: bins for name, bins in curves.items() if bins}
    if not curves:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="confidence", ylabel="share correct", xlim=(0, 1), ylim=(0, 1), title=evaluation["model"])
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    for name, bins in curves.items():
        is_main = name == "in_domain"
        axes.plot(*zip(*bins, strict=True), marker="o", markersize=3, linewidth=2.5 if is_main else 1, label=name)
    axes.legend(fontsize=7)
    return figure


def _bins(result: Mapping[str, Any]) -> list[tuple[float, float]]:
    bins = [(cell["confidence"], cell["accuracy"]) for cell in result.get("reliability") or []]
    return [(confidence, accuracy) for confidence, accuracy in bins if confidence is not None and accuracy is not None]
