"""The cost ledger: what each stage took when its results were made, and what the teacher's cache has saved.

Figures come from artifacts/costs/, which are outputs of their stages: what DVC takes from its cache shows what it cost when made.
"""

from collections.abc import Collection, Mapping
from typing import Any

Costs = Mapping[str, Mapping[str, Any]]
"""Cell (`post_train-sft-0`) -> its seconds, peak bytes and amounts."""
ORDER = ("cache_teacher", "score_tokens", "post_train", "evaluate_ood")
TOKENS = {"post_train": "num_input_tokens", "cache_teacher": "tokens", "score_tokens": "tokens"}
UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def cost_ledger(costs: Costs, cached_teacher: Collection[str], data_card: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Everything that the section shows; None where no costs are known."""
    if not costs:
        return None
    total = sum(cost["work_seconds"] for cost in costs.values())
    stages = sorted({stage_of(name) for name in costs}, key=lambda stage: (*_place(stage), stage))
    return {
        "stages": [_stage_line(stage, costs, total) for stage in stages],
        "total": in_time(total),
        "cache": _cache_line(costs),
        "saved": saved_by_cache(costs, cached_teacher, data_card),
        "is_resumed": any(cost.get("resumed_at_step") for cost in costs.values()),
    }


def stage_of(name: str) -> str:
    return name.partition("-")[0]


def cost_rows(costs: Costs) -> list[dict[str, Any]]:
    """The table for DVC's plot: a row per cell."""
    return [
        {"stage": stage_of(name), "cell": name.partition("-")[2], "seconds": round(cost["work_seconds"], 3), **_plain(cost)}
        for name, cost in sorted(costs.items(), key=lambda pair: (*_place(stage_of(pair[0])), pair[0]))
    ]


def saved_by_cache(costs: Costs, cached_teacher: Collection[str], data_card: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a teacher that runs beside every student would have read: the input tokens of all steps of the cells that ask it.

    Its seconds are told from the capture's speed; None where the cells' tokens or the capture are not known.
    """
    asked = [
        cost["num_input_tokens"]
        for name, cost in costs.items()
        if stage_of(name) == "post_train" and "num_input_tokens" in cost and _preset(name) in cached_teacher
    ]
    lengths = (data_card or {}).get("lengths", {}).get("tokens", {}).get("train")
    capture = costs.get("cache_teacher")
    if not asked or not lengths or not capture:
        return None
    once = lengths["total"]
    seconds = capture["work_seconds"] * sum(asked) / once
    return {
        "cells": len(asked),
        "online_tokens": sum(asked),
        "captured_tokens": once,
        "factor": round(sum(asked) / once, 1),
        "online_time": in_time(seconds),
        "capture_time": in_time(capture["work_seconds"]),
    }


def in_time(seconds: float) -> str:
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= 2 * size), UNITS[-1])
    return f"{seconds / size:,.1f} {unit}"


def in_bytes(number: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,.0f} bytes"


def _stage_line(stage: str, costs: Costs, total: float) -> dict[str, Any]:
    own = [cost for name, cost in costs.items() if stage_of(name) == stage]
    seconds = sum(cost["work_seconds"] for cost in own)
    tokens = [cost[TOKENS[stage]] for cost in own if stage in TOKENS and TOKENS[stage] in cost]
    devices = list(dict.fromkeys(_device(cost) for cost in own if "device" in cost))
    return {
        "stage": stage,
        "cells": len(own),
        "time": in_time(seconds),
        "share": round(100 * seconds / total, 1) if total else 0.0,
        "tokens": f"{sum(tokens):,}" if tokens else None,
        "per_second": f"{sum(tokens) / seconds:,.0f}" if tokens and seconds else None,
        "peak": in_bytes(max(cost.get("peak_bytes", 0) for cost in own)),
        "device": ", ".join(devices) or None,
    }


def _device(cost: Mapping[str, Any]) -> str:
    threads = cost.get("num_threads")
    return f"{cost['device']}, {threads} thread{'s' if threads != 1 else ''}" if threads else str(cost["device"])


def _cache_line(costs: Costs) -> dict[str, Any] | None:
    cost = costs.get("cache_teacher", {})
    if not cost.get("bytes") or not cost.get("tokens"):
        return None
    return {
        "bytes": in_bytes(cost["bytes"]),
        "tokens": f"{cost['tokens']:,}",
        "bytes_per_token": f"{cost['bytes'] / cost['tokens']:.1f}",
    }


def _preset(name: str) -> str:
    return name.partition("-")[2].rpartition("-")[0]


def _place(stage: str) -> tuple[int]:
    return (ORDER.index(stage) if stage in ORDER else len(ORDER),)


def _plain(cost: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cost.items() if name != "work_seconds"}
