"""Bad input through the real entry points: each ends in one clear error with place and repair, and leaves nothing half written.

Every case runs `python -m flows.<stage>` in a copy of the project, with the artifacts that the stage would have found. Those that
come as far as importing torch are run by forks of one process that has it loaded, for the sake of the seconds.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.artifacts import fingerprint_file, write_json
from components.data.tokenized import TokenizedRow, write_rows
from components.models import build_tiny_model, build_word_tokenizer
from components.params import BaseModelParams
from components.teacher_cache.format import CacheManifest
from tests.conftest import build_identity

ROOT = Path(__file__).resolve().parent.parent
WORDS = [f"w{index}" for index in range(40)]
ROWS = [{"instruction": " ".join(WORDS[index % 30 : index % 30 + 8]), "output": f"w{index} w{index // 7}"} for index in range(40)]
Params = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is broken (in the params, or among the files of the copy), what is run, and what must be said of it."""

    stage: str
    code: int
    said: tuple[str, ...]
    params: Callable[[Params], object] = lambda params: None
    files: Callable[[Path], object] = lambda project: None
    is_heavy: bool = False
    """It comes as far as torch: run by a process that has it loaded already."""


def own_data(**changes: Any) -> Callable[[Params], object]:
    return lambda params: params["data"].update({"source": "files", "validation_fraction": 0.2, "test_fraction": 0.2, **changes})


def data_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda project: (project / "inputs" / "data" / name).write_text(text, encoding="utf-8")


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def unknown_model(project: Path) -> None:
    shutil.copytree(project / "artifacts" / "base_model", project / "inputs" / "base_model")
    config = project / "inputs" / "base_model" / "config.json"
    write_json(config, {**json.loads(config.read_text(encoding="utf-8")), "model_type": "perceptron"})


def local_model(params: Params) -> None:
    params["base_model"]["source"] = "local"
    own_data()(params)


def cache_of_another_corpus(project: Path) -> None:
    data = project / "artifacts" / "data"
    data.mkdir()
    write_json(
        data / "identity.json", {"tokenizer_fingerprint": "t", "template_fingerprint": "c", "train_fingerprint": "of this corpus"}
    )
    shutil.copytree(project / "artifacts" / "base_model", data / "tokenizer")
    write_rows(data / "train.arrow", [TokenizedRow("a:1", "a", "alpaca", "f" * 32, [2, 7, 8], [False, True, True])])
    base = json.loads((project / "artifacts" / "base_model" / "base_model.json").read_text(encoding="utf-8"))
    identity = build_identity(model_fingerprint=base["fingerprint"], data_fingerprint="of another corpus")
    manifest = CacheManifest(identity, 50, 0, 0, statistics=[], index_bytes=0, index_checksum="", shards=[])
    manifest.write(project / "artifacts" / "teacher_cache")


CASES = {
    "unknown parameter": Case(
        "prepare_data",
        2,
        (r"params\.yaml: training\.nun_steps: Extra inputs are not permitted \(found 7\)", "Mend params.yaml"),
        params=lambda params: params["training"].update({"nun_steps": 7}),
    ),
    "out of range": Case(
        "prepare_data",
        2,
        (r"params\.yaml: data\.validation_fraction: Input should be less than 0\.5 \(found 0\.9\)",),
        params=own_data(validation_fraction=0.9),
    ),
    "unknown architecture": Case(
        "prepare_base",
        2,
        (r"params\.yaml: base_model\.architecture: Input should be 'llama', .* \(found 'perceptron'\)",),
        params=lambda params: params["base_model"].update({"architecture": "perceptron"}),
    ),
    "params that are no YAML": Case(
        "prepare_data",
        2,
        (r"params\.yaml is not valid YAML",),
        files=lambda project: (project / "params.yaml").write_text("data: [", encoding="utf-8"),
    ),
    "no matrix cell": Case("post_train", 2, (r"flows\.post_train needs preset: python -m flows\.post_train <preset>",)),
    "upstream artifact missing": Case(
        "prepare_data",
        1,
        (r"artifacts/base_model/base_model\.json is missing\. Make it with: dvc repro prepare_base",),
        files=lambda project: shutil.rmtree(project / "artifacts" / "base_model"),
        is_heavy=True,
    ),
    "local model of unknown architecture": Case(
        "prepare_base",
        1,
        (r"inputs/base_model cannot be loaded as a causal language model: .*perceptron",),
        params=local_model,
        files=unknown_model,
        is_heavy=True,
    ),
    "missing data file": Case(
        "prepare_data",
        3,
        (r"data\.path: .*inputs/nowhere\.json does not exist\. Set data\.path in params\.yaml",),
        params=own_data(path="inputs/nowhere.json"),
        is_heavy=True,
    ),
    "malformed rows": Case(
        "prepare_data",
        3,
        (
            "few_rows_rejected: 2 of 42 rows",
            r"rows\.jsonl:3: not valid JSON at column 16: it ends in the middle\. Write it whole, on one line",
            r"rows\.jsonl:42: output must be a text, found null",
            r"raise data_contract\.max_rejected_fraction",
            r"\.work/prepare_data_failed/data_docs/index\.html",
        ),
        params=own_data(),
        files=data_file("rows.jsonl", lines(*ROWS[:2], '{"instruction": ', *ROWS[2:], {"instruction": "a", "output": None})),
    ),
    "wrong schema": Case(
        "prepare_data",
        3,
        (r"a_row_is_used", r"rows\.jsonl:1: no schema has the keys 'label', 'text'"),
        params=own_data(),
        files=data_file("rows.jsonl", lines({"text": "a", "label": 1}, {"text": "b", "label": 0})),
        is_heavy=True,
    ),
    "empty dataset": Case(
        "prepare_data",
        3,
        (r"inputs/data/rows\.json is empty\. Remove the file",),
        params=own_data(),
        files=data_file("rows.json", ""),
        is_heavy=True,
    ),
    "bad held-out item": Case(
        "prepare_data",
        3,
        (r"inputs/ood/set\.jsonl:2: target is empty\. Mend the row or remove it",),
        params=own_data(),
        files=lambda project: (project / "inputs" / "ood" / "set.jsonl").write_text(
            lines({"input": "a", "target": "b"}, {"input": "a", "target": ""}), encoding="utf-8"
        ),
        is_heavy=True,
    ),
    "unknown chat template": Case(
        "prepare_data",
        1,
        (r"data\.chat_template: 'llama9' is neither from_tokenizer, plain, .*llama3.* nor a file",),
        params=own_data(chat_template="llama9"),
        is_heavy=True,
    ),
    "cache of another corpus": Case(
        "post_train sft 0",
        1,
        ("data_fingerprint: cache has of another corpus, this run needs of this corpus", "Run: dvc repro cache_teacher"),
        files=cache_of_another_corpus,
        is_heavy=True,
    ),
}
Outcome = tuple["subprocess.CompletedProcess[str]", dict[str, str], dict[str, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, data that are sound, and the artifact of `prepare_base`: a tiny model that was never trained."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("components", "flows"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy2(ROOT / "params.yaml", folder / "params.yaml")
    for name, row in (("data/rows.jsonl", None), ("ood/set.jsonl", {"input": "what is this", "target": "that"})):
        (folder / "inputs" / name).parent.mkdir(parents=True)
        (folder / "inputs" / name).write_text(lines(*([row] if row else ROWS)), encoding="utf-8")
    params = BaseModelParams(hidden_size=16, num_layers=1, num_heads=1)
    tokenizer = build_word_tokenizer(WORDS, 96)
    base = folder / "artifacts" / "base_model"
    build_tiny_model(params, tokenizer, 96).save_pretrained(base)
    tokenizer.save_pretrained(base)
    write_json(base / "base_model.json", {"source": "embedded", "folder": None, "fingerprint": "b"})
    return folder


@pytest.fixture(scope="module")
def outcomes(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Outcome]]]:
    """All cases, in two rows side by side: most of their seconds are imports."""
    with ThreadPoolExecutor(1) as light, ThreadPoolExecutor(1) as heavy, Preloaded() as preloaded:
        yield {
            name: (heavy if case.is_heavy else light).submit(
                run, case, project, tmp_path_factory.mktemp("case") / "copy", preloaded
            )
            for name, case in CASES.items()
        }
        for pool in (light, heavy):
            pool.shutdown(cancel_futures=True)


class Preloaded:
    """A process that has torch and transformers loaded, and forks one that becomes `python -m <module>` for each request."""

    SCRIPT = """if True:
        import json, os, runpy, sys
        import pyarrow, scipy.stats, torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
        for line in sys.stdin:
            folder, argv, streams = json.loads(line)
            child = os.fork()
            if child == 0:
                os.chdir(folder)
                for number, name in enumerate(streams, start=1):
                    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
                sys.path[0], sys.argv, code = folder, argv, 1
                try:
                    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
                except SystemExit as end:
                    code = end.code
                except BaseException:
                    import traceback
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """

    def __enter__(self) -> "Preloaded":
        command = [sys.executable, "-c", self.SCRIPT]
        self.process = subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)

    def run(self, argv: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
        assert self.process.stdin is not None and self.process.stdout is not None
        streams = [str(folder.with_name(name)) for name in ("stdout", "stderr")]
        self.process.stdin.write(json.dumps([str(folder), argv, streams]) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(argv, code, *(Path(name).read_text(encoding="utf-8") for name in streams))


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DVC_", "MLFLOW_"))}
    return {**kept, "BALLAST_WARM_START": "0", "OMP_NUM_THREADS": "1"}


def run(case: Case, project: Path, copy: Path, preloaded: Preloaded) -> Outcome:
    """The finished process, and the artifacts before and after it."""
    shutil.copytree(project, copy)
    params = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))
    case.params(params)
    (copy / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    case.files(copy)
    before = contents(copy / "artifacts")
    argv = [f"flows.{case.stage.split()[0]}", *case.stage.split()[1:]]
    if case.is_heavy:
        finished = preloaded.run(argv, copy)
    else:
        command = [sys.executable, "-m", *argv]
        finished = subprocess.run(command, cwd=copy, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    return finished, before, contents(copy / "artifacts") | contents(copy / ".work" / "staging")


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): fingerprint_file(file) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_in_one_clear_error_and_leaves_no_artifact(name: str, outcomes: dict[str, Future[Outcome]]) -> None:
    case = CASES[name]
    finished, before, after = outcomes[name].result()
    assert "Traceback" not in finished.stderr, finished.stderr
    assert finished.returncode == case.code, finished.stderr
    [message] = re.findall(r"^error: (.*(?:\n.*)*)", finished.stderr, re.MULTILINE)
    for piece in case.said:
        assert re.search(piece, message), message
    assert "error: " not in finished.stdout
    assert after == before
