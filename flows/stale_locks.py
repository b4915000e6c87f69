"""DVC's record of who works on which path (.dvc/tmp/rwlock), cleared of those who do not.

DVC forgets an entry whose process is gone. It takes any process of that number for the one that wrote it, though: after a reboot,
or in a container that was started again, a stage that was killed keeps its paths for ever.
"""

import json
from pathlib import Path
from typing import Any

from components.artifacts import write_text
from flows.warm_start import Process

RECORD = Path(".dvc/tmp/rwlock")


def drop_stale_entries(root: Path) -> list[int]:
    """Take out every entry whose number belongs to a process that is not DVC; returns those numbers."""
    from dvc.lock import make_lock

    file = root / RECORD
    if not file.exists():
        return []
    with make_lock(f"{file}.lock", tmp_dir=str(file.parent)):
        record = json.loads(file.read_text(encoding="utf-8") or "{}")
        stale = sorted({entry["pid"] for entry in _entries(record) if is_another(entry["pid"])})
        if stale:
            write_text(file, json.dumps(_without(record, stale)))
    return stale


def is_another(pid: int) -> bool:
    """A process of that number runs and its command is not DVC's (a kernel thread has none)."""
    process = Process.find(pid)
    return process is not None and not any("dvc" in word for word in process.command())


def _entries(record: dict[str, Any]) -> list[dict[str, Any]]:
    readers = [entry for entries in record.get("read", {}).values() for entry in entries]
    return [*record.get("write", {}).values(), *readers]


def _without(record: dict[str, Any], stale: list[int]) -> dict[str, Any]:
    read = {path: [entry for entry in entries if entry["pid"] not in stale] for path, entries in record.get("read", {}).items()}
    return {
        "write": {path: entry for path, entry in record.get("write", {}).items() if entry["pid"] not in stale},
        "read": {path: entries for path, entries in read.items() if entries},
    }
