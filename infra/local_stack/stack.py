"""The stack goes up, tells how it is, and goes down."""

import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.artifacts import ROOT
from components.errors import BallastError, ParamsError
from flows.crash_detection import NAME as CRASH_DETECTION
from infra.local_stack import processes
from infra.local_stack.access import write_accounts_config
from infra.local_stack.pools import require_pool, require_pool_name
from infra.local_stack.ports import is_answering, require_free
from infra.local_stack.processes import Record
from infra.local_stack.services import (
    ACCOUNTS,
    ACCOUNTS_CONFIG,
    ARTIFACTS,
    POOLS,
    PORT_VARIABLES,
    PREFECT_HOME,
    SERVERS,
    STATE,
    Service,
    Settings,
    client_environ,
    describe_mlflow,
    describe_prefect,
    describe_worker,
    make_store,
    read_settings,
)

HEALTH = {"prefect": "/api/health", "mlflow": "/health"}
READY_SECONDS = 180.0
"""A server's first start makes its database; on two cores with much else to do that has taken 60 s."""
STARTED = "started!"
"""The last word of a worker that has reached its server and polls."""
POLL_SECONDS = 0.1
WORKER_GRACE_SECONDS = 100.0
"""More than a worker takes at most (infra.local_stack.worker): its flow runs have 60 s, it has 20 s itself."""
SERVER_GRACE_SECONDS = 15.0
SWEEP = "sweep"


def up(environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Start what is not running; what runs stays as it is. Refuses before anything is started."""
    with hold_lock():
        settings = read_settings(environ, processes.read_records(STATE))
        services = [describe_prefect(settings, environ), describe_mlflow(settings, environ)]
        missing = find_missing(services)
        clear_leftovers(missing, say)
        for service in missing:
            require_free(settings.host, settings.ports[service.name], service.name, PORT_VARIABLES[service.name])
        if "prefect" in (service.name for service in missing):
            pause_crash_detection()
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        write_accounts_config(ROOT / "infra" / "mlflow" / "basic_auth.ini", ACCOUNTS_CONFIG, ACCOUNTS)
        make_store(settings, environ)
        for service in missing:
            start(service, say)
        wait_for_servers(services)
        since = datetime.now(UTC)
        client = client_environ(environ, settings.url("prefect"), settings.url("mlflow"))
        apply_deployments(client, say)
        start_sweep(client, since)
        start_workers([describe_worker(pool, client) for pool in POOLS], say)
        say(describe_addresses(settings))


def start_pool(pool: str, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """The workers of one pool on a machine that joins: the servers are elsewhere, at PREFECT_API_URL and MLFLOW_TRACKING_URI."""
    require_pool_name(pool)
    lacking = [name for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI") if not environ.get(name)]
    if lacking:
        raise ParamsError(f"{' and '.join(lacking)} must be set: they say where the servers are (infra/README.md)")
    prefect = environ["PREFECT_API_URL"].rstrip("/").removesuffix("/api")
    if not is_answering(f"{prefect}/api/health"):
        raise BallastError(
            f"no Prefect server answers at PREFECT_API_URL={environ['PREFECT_API_URL']}; on its machine: make stack"
        )
    client = client_environ(environ, prefect, environ["MLFLOW_TRACKING_URI"])
    require_pool(pool, client)
    with hold_lock():
        start_workers([describe_worker(pool, client)], say)


def down(say: Callable[[str], None]) -> None:
    """End the workers, whose stages write their checkpoints, then the servers; in the end no process is left."""
    with hold_lock():
        records = processes.read_records(STATE)
        for words, is_wanted, grace in (
            ("workers", lambda name: name not in SERVERS, WORKER_GRACE_SECONDS),
            ("servers", lambda name: name in SERVERS, SERVER_GRACE_SECONDS),
        ):
            end_services(records, words, is_wanted, grace, say)
        for name in records:
            processes.forget(STATE, name)
        if not records:
            say("nothing was running")


def end_services(
    records: Mapping[str, Record], words: str, is_wanted: Callable[[str], bool], grace: float, say: Callable[[str], None]
) -> None:
    started = time.monotonic()
    running = {name: found for name, record in records.items() if is_wanted(name) and (found := processes.find(record))}
    # A killed parent passes nothing on, so what it has left is told itself.
    orphans = processes.find_marked(STATE, lambda name: is_wanted(name) and name not in running)
    killed = processes.end([*running.values(), *orphans], lambda: processes.find_marked(STATE, is_wanted), grace)
    for name, process in running.items():
        say(f"ended {name} (pid {process.pid})")
    if killed:
        say(f"killed {killed} processes of the {words} that were still there after {time.monotonic() - started:.0f} s")


def status() -> list[dict[str, Any]]:
    """A row per service that was started, with the memory of all its processes."""
    rows = []
    for name, record in processes.read_records(STATE).items():
        if name == SWEEP:
            continue
        process = processes.find(record)
        memory = processes.memory_bytes(processes.find_marked(STATE, lambda service, name=name: service == name))  # type: ignore[misc]
        state = "dead" if process is None else "running"
        if process is not None and record.url and not is_answering(record.url + HEALTH[name]):
            state = "no answer"
        since = datetime.fromtimestamp(record.started, UTC).isoformat(timespec="seconds")
        rows.append(
            {
                "service": name,
                "state": state,
                "pid": record.pid,
                "since": since,
                "memory_bytes": memory,
                "url": record.url,
                "log": record.log,
            }
        )
    return rows


def find_missing(services: list[Service]) -> list[Service]:
    """Those that do not run. One that runs elsewhere than it is now wanted is refused: its clients would lose it."""
    records = processes.read_records(STATE)
    missing = [service for service in services if processes.find(records.get(service.name)) is None]
    for service in services:
        if service not in missing and service.url != records[service.name].url:
            raise BallastError(f"{service.name} runs at {records[service.name].url}, not at {service.url}; first: make down")
    return missing


def clear_leftovers(missing: list[Service], say: Callable[[str], None]) -> None:
    """A server that was killed may have left children, and they its port; a killed worker a stage that writes its checkpoint."""
    names = {service.name for service in missing}
    left = processes.find_marked(STATE, lambda name: name in names)
    if left:
        grace = SERVER_GRACE_SECONDS if names <= set(SERVERS) else WORKER_GRACE_SECONDS
        processes.end(left, lambda: processes.find_marked(STATE, lambda name: name in names), grace)
        say(f"ended {len(left)} processes that a killed {' or '.join(sorted(names))} had left")


def start(service: Service, say: Callable[[str], None]) -> Record:
    record = processes.start(STATE, service.name, service.command, service.environ, ROOT, service.url)
    say(f"started {service.name} (pid {record.pid})")
    return record


def wait_for_servers(services: list[Service]) -> None:
    for service in services:
        wait_for(service.name, lambda service=service: is_answering(service.url + HEALTH[service.name]))  # type: ignore[misc]


def start_workers(workers: list[Service], say: Callable[[str], None]) -> None:
    missing = find_missing(workers)
    clear_leftovers(missing, say)
    records = {worker.name: start(worker, say) for worker in missing}
    for name, record in records.items():
        wait_for(name, lambda record=record: STARTED in Path(record.log).read_text(encoding="utf-8", errors="replace"))  # type: ignore[misc]


def wait_for(name: str, is_ready: Callable[[], bool]) -> None:
    """Until it is ready; its last words if it has ended instead."""
    give_up = time.monotonic() + READY_SECONDS
    record = processes.read_records(STATE)[name]
    while not is_ready():
        has_ended = processes.find(record) is None
        if has_ended or time.monotonic() > give_up:
            words = Path(record.log).read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            end = "ended at once" if has_ended else f"was not ready within {READY_SECONDS:.0f} s"
            raise BallastError("\n".join([f"{name} {end}; the end of {record.log}:", *words]))
        time.sleep(POLL_SECONDS)


def apply_deployments(client: Mapping[str, str], say: Callable[[str], None]) -> None:
    done = subprocess.run([sys.executable, "-m", "flows.deployments"], cwd=ROOT, env=dict(client), capture_output=True, text=True)
    if done.returncode:
        raise BallastError(f"the deployments could not be applied; {(done.stderr or done.stdout).strip()[-2000:]}")
    say(done.stdout.strip())


def pause_crash_detection() -> None:
    """Before the server starts, in its own database: it has heard nobody for a while, and would take all that lives for dead.

    The sweep switches it on again (flows.crash_detection).
    """
    database = PREFECT_HOME / "prefect.db"
    if database.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("DELETE FROM automation_bucket")
            connection.execute("UPDATE automation SET enabled = 0 WHERE name = ?", [CRASH_DETECTION])


def start_sweep(client: Mapping[str, str], since: datetime) -> None:
    """Runs that a reboot has ended are marked within a minute; nobody is left to tell of them."""
    if processes.find(processes.read_records(STATE).get(SWEEP)) is None:
        command = [sys.executable, "-m", "flows.crash_detection", "--since", since.isoformat()]
        processes.start(STATE, SWEEP, command, client, ROOT)


def describe_addresses(settings: Settings) -> str:
    prefect, mlflow = settings.url("prefect"), settings.url("mlflow")
    return "\n".join(
        [
            f"Prefect  {prefect}",
            f"MLflow   {mlflow}",
            "In a shell that is to use them:",
            f"export PREFECT_API_URL={prefect}/api MLFLOW_TRACKING_URI={mlflow}",
        ]
    )


@contextmanager
def hold_lock() -> Iterator[None]:
    """One `up` or `down` of this machine at a time."""
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BallastError("another `make up`, `make down` or `make worker` is at work here; wait for its end") from None
        os.set_inheritable(file.fileno(), False)
        yield
