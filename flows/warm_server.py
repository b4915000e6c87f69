"""Warm start, the server: imports the third-party libraries once and forks a fresh child for every stage.

Started by the first stage below a `dvc` process (flows/warm_start.py, which tells the protocol), it ends with that process.
Only libraries are imported here, never our own modules: an edit takes effect in the next stage.

A process with threads must not fork, and one that has touched CUDA has children that cannot. Both are checked before the first
stage is served; a server that fails the check logs it and ends, and every stage runs by itself as if there were none.
The log lies beside the socket, in ballast-<uid> of the temporary folder.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from flows.warm_child import adopt, die_with, flush_streams, run_stage
from flows.warm_start import (
    BEGUN,
    EXITED,
    FORWARDED_SIGNALS,
    LISTENING_DESCRIPTOR,
    POLL_SECONDS,
    PROJECT_ROOT,
    READY,
    REFUSED,
    Process,
    describe_imports,
)

# module, or module:name,name where the package loads its parts only when they are asked for. What is not installed is skipped.
PRELOAD = (
    "torch torch.utils.data torch.utils.serialization torch.profiler safetensors.torch accelerate tokenizers peft "
    "transformers:Trainer,TrainingArguments,TrainerCallback,AutoConfig,AutoTokenizer,AutoModelForCausalLM,PreTrainedTokenizerFast,"
    "PreTrainedModel,GenerationConfig,LlamaConfig,LlamaForCausalLM,GemmaConfig,GemmaForCausalLM,PhiConfig,PhiForCausalLM "
    "pyarrow pyarrow.parquet scipy.stats scipy.special xxhash pydantic yaml jinja2 tqdm tqdm.auto "
    "mlflow mlflow.transformers mlflow.store.tracking.sqlalchemy_store mlflow.store.model_registry.sqlalchemy_store "
    "sqlalchemy.dialects.sqlite alembic.command git"
)
# In force while the libraries are imported; a stage has its own environment.
IMPORT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator: the one library thread that survives a fork
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() without initialising CUDA, which no child could undo
}
REQUEST_LIMIT_SECONDS = 5.0
CLIENT_GONE_GRACE_SECONDS, OWNER_GONE_GRACE_SECONDS = 10.0, 1.0  # from SIGTERM to SIGKILL
NEVER = float("inf")


@dataclass
class Job:
    """A running stage and the client that waits for it."""

    pid: int
    connection: socket.socket | None
    kill_at_seconds: float = NEVER
    is_terminated: bool = False

    def send(self, number: int) -> None:
        """To the stage alone, as `kill` would: a terminal's Ctrl-C does not reach its session, only its client's."""
        self.is_terminated |= number == signal.SIGTERM
        os.kill(self.pid, number)

    def end(self, grace_seconds: float) -> None:
        """SIGTERM (once) to the stage and all it has started, SIGKILL after the grace."""
        if not self.is_terminated:
            self.is_terminated = True
            self.send_group(signal.SIGTERM)
        self.kill_at_seconds = min(self.kill_at_seconds, time.monotonic() + grace_seconds)

    def send_group(self, number: int) -> None:
        with suppress(ProcessLookupError):  # all gone; or not a group yet, then it will find its client gone and not begin
            os.killpg(self.pid, number)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Server:
    """One thread, one loop: new stages, signals for running ones, ended ones, and the owner's end."""

    def __init__(self, listener: socket.socket, owner: Process, imports: list[object]) -> None:
        self.listener, self.owner, self.imports = listener, owner, imports
        self.jobs: list[Job] = []
        self.pid = os.getpid()
        self.wake_reader, self.wake_writer = socket.socketpair()
        self.wake_writer.setblocking(False)
        signal.set_wakeup_fd(self.wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler the wake-up descriptor is not written

    def serve(self) -> dict[str, Any] | None:
        """Returns in each forked child, with the request that it has to run, and in the server at the owner's end, with None."""
        while True:
            by_connection = {job.connection: job for job in self.jobs if job.connection is not None}
            readable = select.select([self.listener, self.wake_reader, *by_connection], [], [], POLL_SECONDS)[0]
            if self.wake_reader in readable:
                self.wake_reader.recv(4096)
            for connection in by_connection.keys() & set(readable):
                self.hear(by_connection[connection])
            self.reap()
            is_owned = self.owner.is_running()
            if is_owned and self.listener in readable and (request := self.accept()) is not None:
                return request
            for job in self.jobs:
                if not is_owned:
                    job.end(OWNER_GONE_GRACE_SECONDS)
                if time.monotonic() >= job.kill_at_seconds:
                    job.send_group(signal.SIGKILL)
            if not is_owned and not self.jobs:
                return None

    def hear(self, job: Job) -> None:
        """Signals from the client, or the end of the connection: the client was killed."""
        numbers = b""
        with suppress(OSError):
            numbers = job.connection.recv(64) if job.connection is not None else b""
        for number in numbers:
            if number in FORWARDED_SIGNALS:
                job.send(number)
        if not numbers:
            job.close()
            job.end(CLIENT_GONE_GRACE_SECONDS)

    def reap(self) -> None:
        for job in list(self.jobs):
            pid, status = os.waitpid(job.pid, os.WNOHANG)
            if pid == 0:
                continue
            self.jobs.remove(job)
            if job.kill_at_seconds < NEVER:
                job.send_group(signal.SIGKILL)  # what the stage has left behind
            code = os.waitstatus_to_exitcode(status)
            if job.connection is not None:
                with suppress(OSError):  # the client has just gone
                    job.connection.sendall(EXITED + bytes([code if code >= 0 else 128 - code]))
            job.close()

    def accept(self) -> dict[str, Any] | None:
        """Fork for the next client. In the child: its request."""
        connection = self.listener.accept()[0]
        connection.settimeout(REQUEST_LIMIT_SECONDS)
        descriptors: list[int] = []
        try:
            request = receive_request(connection, descriptors)
            if request["imports"] != self.imports:
                connection.sendall(REFUSED)
                raise ValueError("it would import under other variables or options")
            flush_streams()  # or the child would write it again
            pid = os.fork()
            if pid == 0:
                self.become_stage(connection, request, descriptors)
                return request
            self.jobs.append(Job(pid, connection))
        except Exception as error:  # this client runs by itself; those of the running stages still need their server
            connection.close()
            log(f"refused a stage: {error!r}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return None

    def become_stage(self, connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        """In the child: drop the server's things and take the client's. An error here means that the stage has not begun."""
        try:
            die_with(self.pid)
            adopt(request, descriptors)
            for own in (self.listener, self.wake_reader, self.wake_writer):
                own.close()
            for job in self.jobs:
                job.close()
            connection.sendall(BEGUN)
            connection.close()
        except BaseException:
            os._exit(1)


def receive_request(connection: socket.socket, descriptors: list[int]) -> dict[str, Any]:
    """Announce that we are ready and read one request; its descriptors are put into the list, for the caller to close."""
    connection.sendall(READY)
    header, received, _, _ = socket.recv_fds(connection, 4, 3)
    descriptors += received
    num_left, parts = int.from_bytes(header, "big"), [b""]
    while num_left > 0:
        parts.append(connection.recv(min(num_left, 1 << 16)))
        if not parts[-1]:
            break
        num_left -= len(parts[-1])
    if num_left or len(received) != 3:
        raise ValueError("an incomplete request")
    request: dict[str, Any] = json.loads(b"".join(parts))
    return request


def preload(specifications: list[str]) -> None:
    for specification in specifications:
        module, _, names = specification.partition(":")
        try:
            loaded = importlib.import_module(module)
            for name in filter(None, names.split(",")):
                getattr(loaded, name)
        except Exception as error:  # not installed, or broken: the stage that needs it will say so
            log(f"skipped {specification}: {error!r}")
    for name, imported in list(sys.modules.items()):
        if name != "__main__" and is_own(imported):
            del sys.modules[name]
    for finalizer in list(getattr(weakref.finalize, "_registry", {})):
        finalizer.atexit = False  # what the imports hold is not a child's to remove, and torch's libraries take it 0.1 s


def is_own(module: object) -> bool:
    path = getattr(module, "__file__", None) or ""
    return path.startswith(PROJECT_ROOT + os.sep) and not path.startswith(sys.prefix + os.sep)


def find_fork_hazard() -> str | None:
    """Why a fork of this process would be broken. It asks a first child, in whose fork OpenBLAS also folds its thread pools."""
    pid = os.fork()
    if pid == 0:
        torch: Any = sys.modules.get("torch")
        os._exit(1 if torch is not None and torch.cuda._is_in_bad_fork() else 0)
    if os.waitpid(pid, 0)[1] != 0:
        return "a library has initialised CUDA while it was imported"
    if threading.active_count() > 1:
        return f"a library has started threads while it was imported: {threading.enumerate()}"
    for _ in range(100):  # a joined thread may be listed a moment longer
        if len(os.listdir("/proc/self/task")) == 1:
            return None
        time.sleep(0.01)
    return "a library has started native threads while it was imported"


def sweep(folder: str) -> None:
    """Remove what the servers of earlier dvc processes have left, logs included."""
    for name in os.listdir(folder):
        pid, ticks, _ = (name + "--").split("-", 2)
        if pid.isdecimal() and ticks.isdecimal() and not Process(int(pid), int(ticks), 0).is_running():
            with suppress(OSError):
                os.unlink(os.path.join(folder, name))


def log(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def main() -> None:
    began = time.monotonic()
    owner = Process(int(sys.argv[1]), int(sys.argv[2]), 0)
    listener = socket.socket(fileno=LISTENING_DESCRIPTOR)
    listener.set_inheritable(False)
    path = str(listener.getsockname())
    imports = describe_imports(os.environ)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sweep(os.path.dirname(path))

    def end_with_owner(number: int, frame: FrameType | None) -> None:
        if not owner.is_running():
            with suppress(OSError):
                os.unlink(path)
            os._exit(0)

    signal.signal(signal.SIGALRM, end_with_owner)
    signal.setitimer(signal.ITIMER_REAL, POLL_SECONDS, POLL_SECONDS)  # no thread: it would have to be gone before the forks
    specifications = os.environ.get("BALLAST_WARM_PRELOAD", PRELOAD).split()
    os.environ.update(IMPORT_ENVIRONMENT)
    preload(specifications)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    if hazard := find_fork_hazard():
        sys.exit(f"no warm start: {hazard}")
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page that holds an object
    log(f"ready after {time.monotonic() - began:.1f} s with {len(sys.modules)} modules")
    if (request := Server(listener, owner, imports).serve()) is not None:
        run_stage(request["module"])
    with suppress(OSError):
        os.unlink(path)


if __name__ == "__main__":
    main()
