"""Laws of hub sets, against a small hub on loopback: the pinned files and no others, once; and what is said without them.

Each question is asked in a process of its own, because huggingface_hub reads its environment when it is imported.
"""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from components.artifacts import ROOT

QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1"}
"""As flows.stage_runner has it: otherwise huggingface_hub also asks for a list of coding agents, to name one in its header."""
REVISION = "0123456789abcdef" * 2 + "01234567"
TOKEN = "hf_secretsecretsecret"
ROW = b'{"prompt": "a", "completion": "b"}\n'
CARD = b"""---
license: other
license_name: our-terms
configs:
- config_name: short
  data_files:
  - split: train
    path: short/part-*.jsonl.gz
  - split: dev
    path: short/dev.jsonl
- config_name: long
  data_files: long.parquet
---
# words
"""
FILES: dict[str, dict[str, bytes]] = {
    "org/plain": {"train.jsonl": ROW, "test.jsonl": ROW + ROW, "LICENSE": b"MIT", "notes.txt": b"x"},
    "org/shards": {
        f"data/{split}-0000{index}-of-00002.parquet": split.encode() for split in ("train", "extra") for index in (0, 1)
    },
    "org/configs": {
        "README.md": CARD,
        "short/part-2.jsonl.gz": gzip.compress(ROW),
        "short/part-1.jsonl.gz": gzip.compress(ROW + ROW),
        "short/dev.jsonl": ROW,
        "long.parquet": b"PAR1",
        "script.py": b"raise SystemExit('run!')",
        "configs.py": b"raise SystemExit('run!')",
    },
    "org/table": {"train.csv": b"a,b"},
    "org/mixed": {
        "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: 'd/*'\n---\n",
        "d/a.jsonl": ROW,
        "d/b.csv": b"a,b",
    },
    "org/beside": {"train.jsonl": ROW, "train.csv": b"a,b", "train.py": b""},
    "org/uneven": {"train.jsonl": ROW, "dev.csv": b"a,b"},
    "org/twofold": {"train.jsonl": ROW, "train.parquet": b"PAR1"},
    "org/zipped": {"train.jsonl": ROW, "train-more.zip": b"PK"},
    "org/archive": {"data.zip": b"PK"},
    "org/empty": {".gitattributes": b"", "README.md": b"words"},
    "org/outside": {"README.md": b"---\nconfigs:\n- config_name: a\n  data_files: ../../x.jsonl\n---\n", "a.jsonl": ROW},
    "org/elsewhere": {
        "README.md": b"---\nconfigs:\n- config_name: a\n  data_files: 'http://x.org/x.jsonl'\n---\n",
        "a.jsonl": ROW,
    },
    "org/traversal": {"../a.jsonl": ROW},
    "org/badcard": {"README.md": b"---\nlicense: [\n---\n", "a.jsonl": ROW},
    "org/gated": {},
    "org/broken": {},
    "alone": {"a.json": b"[]"},
}


class Hub(BaseHTTPRequestHandler):
    """What a pinned data set needs: the revision, its tree, and HEAD and GET of a file."""

    asked: list[tuple[str, str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path, self.headers.get("Authorization")))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        parts = parts[parts.index("datasets") + 1 :] if "datasets" in parts else []
        verb = next((verb for verb in ("revision", "tree", "resolve") if verb in parts), None)
        if verb is None:
            return self.answer(404)
        at = parts.index(verb)
        hub_id, revision, name = "/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :])
        if hub_id == "org/gated":
            return self.answer(403, error="GatedRepo")
        if hub_id == "org/broken":
            return self.answer(418)
        if hub_id not in FILES:
            return self.answer(401, error="RepoNotFound")
        if revision != REVISION:
            return self.answer(404, error="RevisionNotFound")
        if verb == "revision":
            return self.answer(200, json.dumps({"id": hub_id, "sha": revision}).encode(), kind="application/json")
        if verb == "tree":
            tree = [{"type": "file", "path": path, "size": len(body), "oid": "0" * 40} for path, body in FILES[hub_id].items()]
            return self.answer(200, json.dumps(tree).encode(), kind="application/json")
        if name not in FILES[hub_id]:
            return self.answer(404, error="EntryNotFound")
        return self.answer(200, FILES[hub_id][name])

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes = b"", *, error: str = "", kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Content-Type": kind, "X-Repo-Commit": REVISION}
        headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        for name, value in {**headers, **({"X-Error-Code": error} if error else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


SCRIPT = """
import json, sys
from pathlib import Path
from components.data.hub_sets import fetch_hub_set
from components.data_params import HubDataParams
from components.errors import DataError
answers = []
for entry in json.loads(sys.argv[2]):
    try:
        found = fetch_hub_set(HubDataParams(**entry), Path(sys.argv[1]))
        answers.append({"paths": {name: str(path) for name, path in found.paths.items()}, **found.describe()})
    except DataError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


class FakeHub:
    def __init__(self, address: str, asked: list[tuple[str, str, str | None]], home: Path) -> None:
        self.address, self.asked, self.home = address, asked, home
        self.cache = home / "cache"

    def ask(self, *entries: dict[str, str], **environment: str) -> list[Any]:
        """What fetch_hub_set gives or says of each entry."""
        known = {"PATH": os.environ["PATH"], "HOME": str(self.home), "HF_HOME": str(self.home), "HF_ENDPOINT": self.address}
        wanted = json.dumps([{"revision": REVISION, **entry} for entry in entries])
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(self.cache), wanted],
            cwd=ROOT,
            env={**known, **QUIET, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return list(json.loads(done.stdout))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    asked: list[tuple[str, str, str | None]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("RecordingHub", (Hub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield FakeHub(f"http://127.0.0.1:{server.server_port}", asked, tmp_path)
    server.shutdown()
    server.server_close()
    thread.join()


def test_config_and_split_give_their_files_of_the_pinned_revision_and_no_others(hub: FakeHub) -> None:
    plain, shards, short, dev, long, alone = hub.ask(
        {"hub_id": "org/plain"},
        {"hub_id": "org/shards", "split": "extra"},
        {"hub_id": "org/configs", "config": "short"},
        {"hub_id": "org/configs", "config": "short", "split": "dev"},
        {"hub_id": "org/configs", "config": "long"},
        {"hub_id": "alone"},
    )
    assert list(plain["files"]) == ["org/plain/train.jsonl"] and plain["config"] == "default"
    assert list(shards["files"]) == [f"org/shards/data/extra-0000{index}-of-00002.parquet" for index in (0, 1)]
    assert list(short["files"]) == ["org/configs/short/part-1.jsonl.gz", "org/configs/short/part-2.jsonl.gz"]
    assert list(dev["files"]) == ["org/configs/short/dev.jsonl"] and list(long["files"]) == ["org/configs/long.parquet"]
    assert list(alone["files"]) == ["alone/a.json"]
    fetched = [path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]
    assert len(fetched) == len(set(fetched)) and not any("test.jsonl" in path or ".py" in path for path in fetched)
    assert [path for _, path, _ in hub.asked if f"/{REVISION}" not in path] == [], "nothing but the pinned revision is asked for"


def test_the_files_are_those_of_the_hub_and_the_record_tells_content_and_licence_but_no_path_of_this_machine(
    hub: FakeHub,
) -> None:
    [short] = hub.ask({"hub_id": "org/configs", "config": "short"})
    for name, path in short.pop("paths").items():
        body = FILES["org/configs"][name.removeprefix("org/configs/")]
        assert Path(path).read_bytes() == body and Path(path).is_relative_to(hub.cache) and path.endswith(".jsonl.gz")
    assert short["licence"] == "other: our-terms"
    assert (short["hub_id"], short["revision"], short["split"]) == ("org/configs", REVISION, "train")
    assert str(hub.home) not in json.dumps(short)


def test_what_was_fetched_once_is_had_again_without_asking_anybody(hub: FakeHub) -> None:
    wanted = {"hub_id": "org/configs", "config": "short"}
    first = hub.ask(wanted)
    hub.asked.clear()
    written = {path: path.stat().st_mtime_ns for path in hub.cache.rglob("*")}
    assert hub.ask(wanted, HF_HUB_OFFLINE="1") == first
    assert hub.ask(wanted) == first and hub.asked == []
    assert {path: path.stat().st_mtime_ns for path in hub.cache.rglob("*")} == written, "a whole cache may be read-only"


def test_a_record_or_file_that_is_lost_is_fetched_again(hub: FakeHub) -> None:
    wanted = {"hub_id": "org/plain"}
    [first] = hub.ask(wanted)
    [record] = (hub.cache / "resolved").iterdir()
    record.write_text("{")
    Path(first["paths"]["org/plain/train.jsonl"]).unlink()
    assert hub.ask(wanted) == [first]


def test_a_config_or_split_that_is_not_there_is_answered_with_those_that_are(hub: FakeHub) -> None:
    config, split, unsaid, default = hub.ask(
        {"hub_id": "org/configs", "config": "medium"},
        {"hub_id": "org/configs", "config": "short", "split": "test"},
        {"hub_id": "org/configs"},
        {"hub_id": "org/plain", "config": "short"},
    )
    assert config == "data.hub: org/configs@0123456789ab has no config 'medium'. It has: short, long"
    assert split == "data.hub: org/configs@0123456789ab has no split 'test' in config 'short'. It has: train, dev"
    assert unsaid == "data.hub: org/configs@0123456789ab has several configs: set config to one of short, long"
    assert default.endswith("has no config 'short'. It has: default")


def test_a_set_that_may_not_be_had_is_explained_with_its_repair_and_without_the_token(hub: FakeHub) -> None:
    unknown, gated, revision, broken = hub.ask(
        {"hub_id": "org/nowhere"},
        {"hub_id": "org/gated"},
        {"hub_id": "org/plain", "revision": "a" * 40},
        {"hub_id": "org/broken"},
        HF_TOKEN=TOKEN,
    )
    assert "org/nowhere@0123456789ab is not known to the hub, or is private" in unknown and "HF_TOKEN" in unknown
    assert "org/gated@0123456789ab is gated. Accept the conditions" in gated and "HF_TOKEN" in gated
    assert f"has no revision {'a' * 40}. Take the 40 digits" in revision
    assert "the hub answered 418" in broken
    assert {token for _, _, token in hub.asked} == {f"Bearer {TOKEN}"}, "the token is used"


def test_without_a_network_or_a_whole_cache_the_message_names_the_cache_and_the_switches(hub: FakeHub) -> None:
    [offline] = hub.ask({"hub_id": "org/plain"}, HF_HUB_OFFLINE="1")
    [gone] = hub.ask({"hub_id": "org/plain"}, HF_ENDPOINT="http://127.0.0.1:9")
    for said in (offline, gone):
        assert "org/plain@0123456789ab cannot be fetched (" in said and f"not whole in {hub.cache}. Check the network" in said
    assert hub.asked == []


def test_files_of_a_kind_that_is_not_read_are_refused_and_never_left_out(hub: FakeHub) -> None:
    names = ("table", "mixed", "archive", "beside", "twofold", "zipped", "uneven", "empty")
    table, mixed, archive, beside, twofold, zipped, uneven, empty = hub.ask(*({"hub_id": f"org/{name}"} for name in names))
    assert "org/table@0123456789ab: train.csv: of no kind that is read (.json, " in table and "pandas.read_csv" in table
    assert "org/mixed@0123456789ab: d/b.csv: of no kind that is read" in mixed
    assert "data.zip: of no kind that is read" in archive and "Unpack it" in archive
    assert "org/beside@0123456789ab: train.csv: of no kind that is read" in beside
    assert "split 'train' is both train." in twofold and "which of them is meant cannot be told" in twofold
    assert "train-more.zip: of no kind that is read" in zipped
    assert "org/uneven@0123456789ab: `datasets` cannot tell its files" in uneven and "Fetch the files you want by hand" in uneven
    assert empty.endswith("org/empty@0123456789ab holds no data file. Check hub_id and revision")


def test_a_repository_cannot_name_files_outside_itself(hub: FakeHub) -> None:
    outside, elsewhere, traversal, badcard = hub.ask(
        {"hub_id": "org/outside"}, {"hub_id": "org/elsewhere"}, {"hub_id": "org/traversal"}, {"hub_id": "org/badcard"}
    )
    assert "its card names files outside the repository (../../x.jsonl)" in outside
    assert "its card names files outside the repository (http://x.org/x.jsonl)" in elsewhere
    assert "the hub lists '../a.jsonl', which leads out of the repository" in traversal
    assert "its card cannot be read" in badcard
    assert not list(hub.home.rglob("a.jsonl"))


def test_the_fingerprint_of_a_set_follows_the_content_of_its_files(hub: FakeHub) -> None:
    [first] = hub.ask({"hub_id": "org/plain"})
    file = Path(first["paths"]["org/plain/train.jsonl"]).resolve()
    file.write_bytes(ROW + ROW)
    [second] = hub.ask({"hub_id": "org/plain"})
    assert first["files"] != second["files"] and first["fingerprint"] != second["fingerprint"]
