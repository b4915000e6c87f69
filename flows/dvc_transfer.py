"""Bytes between DVC's cache and its remote: `dvc push` and `dvc fetch` of some outputs, without holding up the repository.

DVC holds its lock on a repository for as long as it pushes or fetches; a stage that ends meanwhile could not be recorded. So
these two run in a folder of their own, which has the clone's cache and settings and one .dvc file that lists the outputs.
"""

import os
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import BallastError
from flows.child_process import run_child
from flows.credentials import child_environ
from flows.redaction import redact
from flows.remote_settings import read_secrets, write_settings

OnLine = Callable[[str], None]
SCRATCH = Path(".work/exchange")
NOISE = ("Collecting", "Fetching", "Pushing", "Everything is up to date")
MAX_ERROR_LINES = 6


class Carrier:
    """Runs DVC's commands for a clone: with the credentials in the child's environment only, and none of them in a line."""

    def __init__(
        self, root: Path, on_line: OnLine, held_files: Sequence[int] = (), stopping: threading.Event | None = None
    ) -> None:
        self.root, self.held_files, self.stopping = root.resolve(), held_files, stopping
        self.environ = child_environ()
        self._hidden = {**os.environ, **self.environ, **read_secrets(self.root)}
        self._on_line = on_line

    def say(self, line: str) -> None:
        self._on_line(self.redact(line))

    def redact(self, text: str) -> str:
        return redact(text, self._hidden)

    def push(self, outs: Sequence[Mapping[str, Any]], remote: str) -> None:
        """Outputs as dvc.lock has them, from the cache to the remote; what is there already is not sent again."""
        self._transfer("push", outs, remote, "see that the remote can be written to")

    def fetch(self, outs: Sequence[Mapping[str, Any]], remote: str) -> None:
        """From the remote into the cache, each file's hash compared with its name."""
        self._transfer(
            "fetch", outs, remote, "what is missing or damaged there: push it again from where it was made, or make it anew"
        )

    def _transfer(self, verb: str, outs: Sequence[Mapping[str, Any]], remote: str, repair: str) -> None:
        if not outs:
            return
        from dvc.utils.serialize import dump_yaml

        (self.root / SCRATCH).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.root / SCRATCH))
        try:
            (folder / ".dvc").mkdir()
            (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n")
            write_settings(self.root, folder)
            dump_yaml(str(folder / "outputs.dvc"), {"outs": [dict(out) for out in outs]})
            self.run(folder, [verb, "--remote", remote, "outputs.dvc"], repair, {"DVC_SITE_CACHE_DIR": str(folder / "site")})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, folder: Path, words: Sequence[str], repair: str, environ: Mapping[str, str] | None = None) -> None:
        """One DVC command in the folder; its lines are passed on, and its failure is told in its own words."""
        last_lines: deque[str] = deque(maxlen=50)

        def keep_and_pass_on(line: str) -> None:
            last_lines.append(line)
            if not line.startswith(NOISE):
                self.say(line)

        started = time.perf_counter()
        command = [sys.executable, "-m", "dvc", "--cd", str(folder), "--wait-for-lock", *words]
        code = run_child(command, keep_and_pass_on, {**self.environ, **(environ or {})}, self.held_files, stopping=self.stopping)
        shown = f"dvc {' '.join(words)}"
        if code != 0:
            told = [line for line in last_lines if line.startswith(("ERROR: ", "WARNING: "))] or list(last_lines)
            raise BallastError(
                self.redact(f"`{shown}` failed (exit code {code}); {repair}\n" + "\n".join(told[-MAX_ERROR_LINES:]))
            )
        self.say(f"`{shown}` took {time.perf_counter() - started:.1f} s")
