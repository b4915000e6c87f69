"""Laws of the report: it needs nothing but itself, says what the differences say, and equal input gives equal bytes."""

import csv
import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from components.evaluation.comparison import compare_models
from components.evaluation.headline import SET_METRICS
from components.evaluation.report import render_html, write_report
from components.evaluation.report_facts import ReportContext
from components.evaluation.report_figures import MAX_CURVE_POINTS, mean_curve
from components.evaluation.report_pareto import ParetoPoint, pareto_front, pareto_svg
from components.evaluation.report_tables import HEADLINE, clear_best
from components.evaluation.report_verdict import find_difference, headline
from components.params import ComparisonParams

OOD_SETS = ("copy", "reverse", "sort", "count", "lookup", "parity")
SKILL = {
    "base": (0.02, 0.98),
    "sft": (0.985, 0.18),
    "masked_mle": (0.98, 0.24),
    "sft_kl": (0.90, 0.66),
    "uncertainty_aware": (0.97, 0.50),
}
"""In-domain and OOD accuracy of the synthetic models."""
TABLES = ("methods.csv", "curves.csv", "reliability.csv", "set_differences.csv", "costs.csv")
ARTEFACTS = ("report.html", "tokens.html", "model_card.md", "pareto.png", "metrics.json", *TABLES)
CONTEXT = ReportContext(
    base_model="llama, 152,320 parameters (embedded world, pre-trained here)",
    data="480 rows in, 0 quarantined (160 alpaca, 160 sharegpt, 160 gsm8k)",
    num_train_rows=384,
    reproduce_command="make repro",
    base_fingerprint="8d1f0c6a2b7e4953a1c0de5f7b6a9e42",
    git_commit="3f2a9c1d5e7b8046f1a2c3d4e5f60718293a4b5c",
    dvc_lock_fingerprint="5b0e7f2d9a6c41388e1d2c3b4a5f6071",
    objectives={
        "sft": "maximum likelihood on every token",
        "masked_mle": "maximum likelihood on the 50% with the highest student_nll",
        "sft_kl": "maximum likelihood on every token, plus 0.3 x KL(base || student) on every token",
        "uncertainty_aware": "maximum likelihood on the highest 50% by student_nll, plus 0.3 x KL(base || student) on the rest",
    },
)


def evaluation(
    preset: str, seed: int | None, skill: tuple[float, float], *, scale: float = 1.0, num_items: int = 60
) -> dict[str, Any]:
    """What `evaluate_ood` leaves for a model that is right as often as `skill` says; `scale` makes accuracies tiny."""
    rng = random.Random(f"{preset}-{seed}")
    luck = rng.gauss(0, 0.015)
    sets = {}
    for place, name in enumerate(("validation", "in_domain", *(f"ood/{name}" for name in OOD_SETS))):
        is_ood = name.startswith("ood/")
        loss = (1 - skill[1]) * (0.6 + 0.15 * place) if is_ood else 1 - skill[0]
        share = min(1.0, max(0.0, (1 - loss + luck) * scale))
        item_rng = random.Random(name)
        items = [
            {
                "item_id": f"{name}:{index}",
                "nll_sum": 4 * (0.1 - math.log(max(share, 0.05))),
                "num_tokens": 4,
                "num_correct": sum(item_rng.random() < share for _ in range(4)),
                "num_scored": 4,
            }
            for index in range(num_items)
        ]
        sets[name] = {
            "metrics": _metrics(items, share, rng, has_moved=preset != "base"),
            "uncertainty": None,
            "items": items,
            "reliability": [],
            "risk_coverage": [{"coverage": tenth / 10, "risk": (1 - share) * tenth / 10} for tenth in range(1, 11)],
        }
    sets["in_domain"]["uncertainty"] = {"rank_correlation": {"student_nll": {"epistemic": 0.31 + luck, "aleatoric": 0.52 - luck}}}
    name = preset if seed is None else f"{preset}-{seed}"
    return {"model": name, "preset": preset, "seed": seed, "model_fingerprint": f"{rng.getrandbits(128):032x}", "sets": sets}


def _metrics(
    items: list[dict[str, Any]], share: float, rng: random.Random, has_moved: bool
) -> dict[str, dict[str, float | None]]:
    return {
        "accuracy": {"value": sum(item["num_correct"] for item in items) / sum(item["num_scored"] for item in items)},
        "nll": {"value": sum(item["nll_sum"] for item in items) / sum(item["num_tokens"] for item in items)},
        "ece": {"value": 0.02 + 0.15 * (1 - share) + 0.01 * rng.random()},
        "brier": {"value": 0.1 + 0.9 * (1 - share)},
        "aurc": {"value": 0.01 + 0.3 * (1 - share)},
        "drift_kl": {"value": has_moved * (1.2 * (1 - share) + 0.05 * rng.random())},
    }


def compare(num_seeds: int = 3, candidate: str = "uncertainty_aware", **world: Any) -> dict[str, Any]:
    models = [evaluation("base", None, SKILL["base"], **world)]
    models += [
        evaluation(name, seed, skill, **world) for name, skill in SKILL.items() if name != "base" for seed in range(num_seeds)
    ]
    return compare_models(models, ComparisonParams(num_resamples=200), candidate)


def curve(preset: str, seed: int, num_lines: int = 40) -> list[dict[str, float]]:
    """The log of a training run."""
    rng = random.Random(f"curve {preset}-{seed}")
    masks, distils = preset in ("masked_mle", "uncertainty_aware"), preset in ("sft_kl", "uncertainty_aware")
    lines = []
    for step in range(10, 10 * num_lines + 1, 10):
        nll = (0.45 if distils else 0.3) + 2.6 * math.exp(-step / 60) + rng.gauss(0, 0.02)
        selected = min(1.0, max(0.0, 0.5 + rng.gauss(0, 0.02))) if masks else 1.0
        line = {
            "step": float(step),
            "loss": nll * 1.1,
            "nll": nll,
            "selected_fraction": selected,
            "masked_fraction": 1 - selected,
        }
        line |= {"distillation_kl": 0.2 * (1 - math.exp(-step / 80)), "grad_norm": 1 + rng.random(), "learning_rate": 1e-3}
        lines.append(line | ({"threshold": nll * 0.8} if masks else {}))
    return lines


def all_curves(comparison: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    models = [model for name, method in comparison["methods"].items() if name != "base" for model in method["models"]]
    return {model: curve(*_split(model)) for model in models}


def _split(model: str) -> tuple[str, int]:
    preset, _, seed = model.rpartition("-")
    return preset, int(seed)


@pytest.fixture(scope="module")
def comparison() -> dict[str, Any]:
    """Base and 4 presets x 3 seeds on an in-domain, a validation and 6 OOD sets."""
    return compare()


@pytest.fixture(scope="module")
def report(comparison: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, comparison, all_curves(comparison), CONTEXT)
    return folder


def render(comparison: dict[str, Any], context: ReportContext = CONTEXT) -> str:
    return render_html(comparison, {}, context)


def parse(page: str) -> ElementTree.Element:
    """The page as XML: fails unless every element is closed and every character escaped."""
    return ElementTree.fromstring(page)


def text_of(page: str) -> str:
    """What a reader reads: the page without style and markup, blanks made one."""
    body = parse(page).find("body")
    assert body is not None
    return re.sub(r"\s+", " ", " ".join(body.itertext()))


def set_difference(comparison: dict[str, Any], metric: str, verdict: str, against: str | None = None) -> None:
    """Make the candidate win, lose or tie in a metric against one method or all."""
    low, high = {"better": (0.02, 0.08), "worse": (-0.08, -0.02), "tie": (-0.03, 0.03)}[verdict]
    candidate = comparison["candidate"]["preset"]
    for found in comparison["differences"]:
        pair = [found["method"], found["reference"]]
        if found["metric"] == metric and candidate in pair and (against is None or against in pair):
            found.update(method=candidate, reference=next(name for name in pair if name != candidate), verdict=verdict)
            found.update(low=low, high=high, value=(low + high) / 2)


# --- one file that needs nothing else -------------------------------------------------------------------------------


def test_every_artefact_is_written_and_the_page_is_small(report: Path) -> None:
    assert sorted(path.name for path in report.iterdir()) == sorted(ARTEFACTS)
    assert (report / "report.html").stat().st_size < 1_500_000


def test_the_page_loads_nothing_from_elsewhere(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    for element in parse(page).iter():
        assert element.tag.rpartition("}")[2] not in ("script", "link", "iframe", "img", "object", "embed", "image")
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("href", "src", "srcset", "action", "data", "poster"):
                assert value.startswith("#") or value == "tokens.html"
    assert "@import" not in page and set(re.findall(r"url\(([^)]{0,2})", page)) <= {"#p"}
    assert set(re.findall(r"\w+://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_every_reference_inside_the_page_has_its_target(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r' id="([^"]+)"', page)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_both_themes_define_every_colour_in_use(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    assert "prefers-color-scheme: dark" in page
    in_use = set(re.findall(r"var\((--[a-z0-9-]+)\)", page)) - {"--tone", "--amount", "--hue", "--v"}
    for theme in (light, dark):
        assert in_use <= set(re.findall(r"(--[a-z0-9-]+):", theme))


def test_text_has_AA_contrast_in_both_themes(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    for theme in re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL):
        colours = dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", theme))
        pairs = [(text, ground) for text in ("--ink", "--muted") for ground in ("--page", "--surface", "--raised")]
        pairs += [(f"--{name}", f"--{name}-soft") for name in ("good", "bad", "trade")] + [("--ink", "--even-soft")]
        pairs += [(name, "--surface") for name in colours if name.startswith("--series-")]
        assert {
            pair: contrast(*(colours[name] for name in pair)) for pair in pairs if contrast(*(colours[n] for n in pair)) < 4.5
        } == {}


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.1."""

    def luminance(colour: str) -> float:
        shares = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_equal_input_gives_equal_bytes(comparison: dict[str, Any], report: Path, tmp_path: Path) -> None:
    write_report(tmp_path, deepcopy(comparison), all_curves(comparison), CONTEXT)
    for name in ARTEFACTS:
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()


def test_a_comparison_read_back_from_JSON_gives_the_same_page(comparison: dict[str, Any]) -> None:
    assert render(json.loads(json.dumps(comparison))) == render(comparison)


def test_names_are_escaped(comparison: dict[str, Any]) -> None:
    evil = '<script>alert("1")</script>&'
    renamed = json.loads(json.dumps(comparison).replace('"masked_mle', json.dumps(evil)[:-1]).replace("ood/copy", "ood/<u>&"))
    page = render(renamed, ReportContext("<u>&", "<i>&", 1, "a && b <c>", {evil: "<u>"}))
    assert "<script" not in page and "<u>" not in page and "<i>&" not in page
    read = text_of(page)
    assert evil in read and "ood/<u>&" in read and "a && b <c>" in read


# --- it says what the differences say -------------------------------------------------------------------------------


def test_every_method_appears_with_its_mean_and_interval(comparison: dict[str, Any], report: Path) -> None:
    rows = {" ".join(row[0].itertext()).split()[0]: row for row in table_rows(report, "Methods and their metrics")}
    assert list(rows) == list(SKILL)
    for name, method in comparison["methods"].items():
        found = method["metrics"]["ood_accuracy"]
        read = " ".join(" ".join(rows[name].itertext()).split())
        assert f"{found['mean']:.3f}" in read
        if name != "base":
            assert f"± {(found['high'] - found['low']) / 2:.3f}" in read


def table_rows(report: Path, label: str) -> list[ElementTree.Element]:
    page = parse((report / "report.html").read_text(encoding="utf-8"))
    region = next(element for element in page.iter("div") if element.get("aria-label") == label)
    return region.findall("table/tbody/tr")


def test_the_verdict_follows_the_paired_differences(comparison: dict[str, Any]) -> None:
    lead = headline(comparison)[0]
    for metric, part in zip(("in_domain_accuracy", "ood_accuracy"), lead.split("; OOD"), strict=True):
        for rival in ("sft", "masked_mle", "sft_kl"):
            found = find_difference(comparison, metric, "uncertainty_aware", rival)
            assert found is not None
            verb = {"better": "beats", "tie": "ties with", "worse": "loses to"}[found["verdict"]]
            assert re.search(rf"{verb}( \w+,| \w+ and| and)* {rival}\b", part), (verb, rival, part)


def test_a_losing_candidate_is_reported_as_losing(comparison: dict[str, Any]) -> None:
    lost = deepcopy(comparison)
    for metric in ("in_domain_accuracy", "ood_accuracy"):
        set_difference(lost, metric, "worse")
    sentences = headline(lost)
    assert sentences[0] == "uncertainty_aware loses to sft, masked_mle and sft_kl, in-domain and OOD."
    assert sentences[1] == "It is worse than the base in-domain (−0.050) and worse than the base OOD (−0.050)."
    read = text_of(render(lost))
    assert "Against sft_kl, the simple remedy (distillation on every token), it loses." in read
    assert "beats" not in " ".join(sentences) and "it helped" not in read.partition("Did masking help? with distillation")[2]


def test_a_tie_is_called_a_tie(comparison: dict[str, Any]) -> None:
    tied = deepcopy(comparison)
    for metric in ("in_domain_accuracy", "ood_accuracy"):
        set_difference(tied, metric, "tie")
    assert headline(tied)[0] == "uncertainty_aware ties with sft, masked_mle and sft_kl, in-domain and OOD."
    read = text_of(render(tied))
    assert "Against sft_kl, the simple remedy (distillation on every token), it is a tie." in read
    assert "no difference to be told from chance" in read


def test_a_gain_that_costs_elsewhere_is_a_trade_off(comparison: dict[str, Any]) -> None:
    mixed = deepcopy(comparison)
    set_difference(mixed, "in_domain_accuracy", "better", "sft_kl")
    set_difference(mixed, "ood_accuracy", "worse", "sft_kl")
    read = text_of(render(mixed))
    assert "it is a trade-off" in read
    assert "a trade-off: gained in-domain, lost OOD" in read


def test_the_candidate_may_be_listed_before_the_others(comparison: dict[str, Any]) -> None:
    other_way = deepcopy(comparison)
    other_way["candidate"]["preset"] = "sft"
    for metric in ("in_domain_accuracy", "ood_accuracy"):
        there, back = (find_difference(comparison, metric, *pair) for pair in (("sft", "sft_kl"), ("sft_kl", "sft")))
        assert there is not None and back is not None
        assert (there["value"], there["low"], there["high"]) == (-back["value"], -back["high"], -back["low"])
        assert {there["verdict"], back["verdict"]} in ({"better", "worse"}, {"tie"})
    assert "beats" in headline(other_way)[0] and "loses to" in headline(other_way)[0]


def test_calibration_has_a_table_and_risk_curves_of_its_own(comparison: dict[str, Any], report: Path) -> None:
    for row in table_rows(report, "Calibration and uncertainty"):
        assert len(row) == 2 + 2 * 3 + 2, "method, seeds; ECE, Brier and AURC of both scopes; what nll tracks"
    assert all(len(row) == 2 + 2 * 4 for row in table_rows(report, "Methods and their metrics")), "room for four a scope"
    page = (report / "report.html").read_text(encoding="utf-8")
    for name in comparison["methods"]:
        assert page.count(f'aria-label="In-domain risk of {name} over coverage"') == (name != "base")


def test_what_was_told_from_a_reference_is_said_to_be(comparison: dict[str, Any]) -> None:
    told = deepcopy(comparison)
    assert "told from a reference model" not in text_of(render(told))
    told["uncertainty_against"] = "reference"
    assert "told from a reference model, for want of the truth" in text_of(render(told))


def test_only_a_best_that_is_no_tie_is_bold(comparison: dict[str, Any]) -> None:
    assert clear_best(comparison, "ood_accuracy") == "sft_kl"
    tied = deepcopy(comparison)
    for found in tied["differences"]:
        found["verdict"] = "tie"
    assert clear_best(tied, "ood_accuracy") is None
    assert clear_best(compare(num_seeds=1), "in_domain_ece") is None


# --- what is missing ------------------------------------------------------------------------------------------------


def test_metrics_that_do_not_exist_render(comparison: dict[str, Any], tmp_path: Path) -> None:
    real = deepcopy(comparison)
    for name, method in real["methods"].items():
        for metric in ("nll_tracks_epistemic", "nll_tracks_aleatoric", "ood_ece"):
            method["metrics"][metric] = None
        if name == "sft":
            method["metrics"]["ood_accuracy"] = None
    real["sets"]["ood/sort"] = {name: dict.fromkeys(SET_METRICS) for name in real["methods"]}
    write_report(tmp_path, real, {}, CONTEXT)
    read = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert read.count("not known on real data") == 1
    assert "Not in the picture for want of an accuracy: sft." in read
    assert "None" not in read and "nan" not in read.split()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "ood_accuracy" not in metrics["sft"] and "ood_ece" not in metrics["base"]


def test_no_OOD_set_renders(comparison: dict[str, Any], tmp_path: Path) -> None:
    bare = deepcopy(comparison)
    bare["sets"] = {name: row for name, row in bare["sets"].items() if not name.startswith("ood/")}
    bare["differences"] = [found for found in bare["differences"] if found["metric"] == "in_domain_accuracy"]
    for method in bare["methods"].values():
        method["metrics"] |= {metric: None for metric in method["metrics"] if metric.startswith("ood_")}
    write_report(tmp_path, bare, {}, CONTEXT)
    assert "no OOD accuracy: no picture" in text_of((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    single = compare(num_seeds=1)
    write_report(tmp_path, single, all_curves(single), CONTEXT)
    read = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "One seed: no interval." in read and "±" not in read.replace("Mean over seeds ±", "").replace("bars reach ±", "")
    assert "not the luck of training" in read


def test_one_method_alone_renders() -> None:
    models = [evaluation("base", None, SKILL["base"]), evaluation("sft", 0, SKILL["sft"])]
    read = text_of(
        render(compare_models(models, ComparisonParams(num_resamples=100), "sft"), ReportContext("b", "d", 1, "make repro"))
    )
    assert "It is better than the base in-domain" in read
    assert "simple remedy" not in read and "What did masking do" not in read


def test_tiny_accuracies_keep_their_digits() -> None:
    tiny = compare(scale=0.004, num_items=500)
    mean = tiny["methods"]["sft"]["metrics"]["in_domain_accuracy"]["mean"]
    assert 0 < mean < 0.01
    assert f"{mean:.5f}" in text_of(render(tiny))


# --- figures and tables ---------------------------------------------------------------------------------------------


def test_the_front_holds_what_nothing_dominates() -> None:
    assert pareto_front([(0.2, 0.9), (0.6, 0.7), (0.5, 0.6), (0.2, 0.8), (0.6, 0.7)]) == [(0.2, 0.9), (0.6, 0.7)]


def test_labels_of_crowded_points_do_not_overlap() -> None:
    def interval(mean: float) -> dict[str, Any]:
        return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "values": [mean]}

    points = [
        ParetoPoint(f"method_{index}", index, interval(0.5 + index / 1000), interval(0.5 - index / 1000), False, False)
        for index in range(8)
    ]
    places = re.findall(r'<text[^>]*? x="([\d.]+)" y="([\d.]+)"[^>]*>method_\d', pareto_svg(points, 760, 480))
    assert len(places) == 8
    for index, (x, y) in enumerate(places):
        for other_x, other_y in places[:index]:
            assert abs(float(x) - float(other_x)) > 60 or abs(float(y) - float(other_y)) > 11


def test_a_mean_curve_averages_the_runs_that_logged_the_step() -> None:
    runs = [[{"step": 10, "nll": 1.0}, {"step": 20, "nll": 2.0}], [{"step": 10, "nll": 3.0}, {"step": 20, "nll": math.nan}]]
    assert mean_curve(runs, "nll") == [(10, 2.0), (20, 2.0)]
    assert mean_curve(runs, "threshold") == []


def test_a_long_curve_is_thinned_and_keeps_its_mean() -> None:
    run = [{"step": float(step), "nll": float(step % 7)} for step in range(6000)]
    thinned = mean_curve([run], "nll")
    assert len(thinned) <= MAX_CURVE_POINTS
    assert sum(value for _, value in thinned) / len(thinned) == pytest.approx(sum(line["nll"] for line in run) / len(run))


def test_the_tables_hold_every_model_and_every_log_line(comparison: dict[str, Any], report: Path) -> None:
    methods = list(csv.DictReader((report / "methods.csv").read_text().splitlines()))
    assert [row["model"] for row in methods] == [model for method in comparison["methods"].values() for model in method["models"]]
    sft = comparison["methods"]["sft"]["metrics"]["ood_accuracy"]["values"]
    assert [float(row["ood_accuracy"]) for row in methods if row["method"] == "sft"] == list(sft)
    lines = list(csv.DictReader((report / "curves.csv").read_text().splitlines()))
    assert len(lines) == 4 * 3 * 40
    assert list(lines[0])[:4] == ["method", "seed", "step", "nll"]
    assert {row["threshold"] == "" for row in lines if row["method"] == "sft"} == {True}
    assert {row["threshold"] == "" for row in lines if row["method"] == "uncertainty_aware"} == {False}


def test_metrics_are_the_rounded_means_of_the_headline(comparison: dict[str, Any], report: Path) -> None:
    metrics = json.loads((report / "metrics.json").read_text())
    for name, method in comparison["methods"].items():
        means = {metric: round(found["mean"], 6) for metric, found in method["metrics"].items() if found}
        assert metrics[name] == {metric: means[metric] for metric in HEADLINE if metric in means}
        assert {"in_domain_accuracy", "ood_accuracy", "in_domain_nll", "ood_nll"} <= set(metrics[name])
