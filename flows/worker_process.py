"""A flow process that does not outlive its worker: nobody could cancel it, and Prefect would call it Running for long."""

import os
import signal
import threading
import time

from flows.warm_start import Process

POLL_SECONDS = 1.0


def end_with_worker() -> None:
    """From now on this process gets a SIGTERM when the `prefect worker` above it is gone; without one nothing changes.

    Prefect then calls the flow run Crashed, and what it has started ends as with any SIGTERM: with a checkpoint.
    """
    workers = [ancestor for ancestor in find_ancestors() if {"worker", "start"} <= set(ancestor.command())]
    if not workers:
        return

    def watch() -> None:
        while workers[0].is_running():
            time.sleep(POLL_SECONDS)
        drop_output()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-worker", daemon=True).start()


def drop_output() -> None:
    """Nobody reads our output any more, and rich (Prefect's log on the console) ends the process at a broken pipe: before Prefect
    has told the server of the crash."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def find_ancestors() -> list[Process]:
    """Parent first, then its parent, up to the first process."""
    found: list[Process] = []
    current = Process.find(os.getpid())
    while current is not None and current.parent_pid > 0:
        current = Process.find(current.parent_pid)
        found += [current] if current is not None else []
    return found
