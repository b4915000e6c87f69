"""A checkout for each commit that a worker is asked for, beside the tree of its clone: .work/checkouts/<first 12 digits>.

    with open_checkout(clone, commit, environ) as (folder, lock): …

It is a git worktree with DVC's cache and settings of the clone, and links to its .venv and to what stages go on from when they
were killed (checkpoints, finished shards). It stays for the next stage of the commit; old ones in which nobody works are removed.
Whoever works there shares a lock; `lock`, handed on to the child processes, says so for as long as one of them lives.
"""

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from components.errors import BallastError
from flows.redaction import redact
from flows.remote_settings import write_settings

CHECKOUTS = Path(".work/checkouts")
NUM_KEPT = 3
RESUMED = ("post_train", "score_tokens", "teacher_cache")
"""What stages go on from lies in the clone's .work, for all checkouts: a volume of a container is mounted there."""
GIT_SECONDS = 600.0


@contextmanager
def open_checkout(root: Path, commit: str, environ: Mapping[str, str]) -> Iterator[tuple[Path, int]]:
    """The checkout of the commit and our descriptor of its lock. It is made by one process at a time."""
    folder = root / CHECKOUTS / commit[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold(folder.parent / ".lock", fcntl.LOCK_EX):
        need_commit(root, commit, environ)
        in_use = take(lock_of(folder), fcntl.LOCK_SH)
        try:
            if not is_whole(folder):
                make_checkout(root, folder, commit, environ)
            write_settings(root, folder)  # anew each time: the clone's may have changed
            os.utime(lock_of(folder))
            prune(root, folder, environ)
        except BaseException:
            os.close(in_use)
            raise
    try:
        yield folder, in_use
    finally:
        os.close(in_use)


def make_checkout(root: Path, folder: Path, commit: str, environ: Mapping[str, str]) -> None:
    """A new one; what a killed process has left half made is taken away first."""
    remove_checkout(root, folder, environ)
    run_git(
        root, environ, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--force", "--detach", str(folder), commit
    )
    if (root / ".venv").exists() and not (folder / ".venv").exists():
        (folder / ".venv").symlink_to((root / ".venv").resolve())
    (folder / ".work").mkdir(exist_ok=True)
    for name in RESUMED:  # keyed by what they were made from: another commit's checkout may go on with them
        (root / ".work" / name).mkdir(parents=True, exist_ok=True)
        (folder / ".work" / name).symlink_to(root / ".work" / name)
    mark_of(folder).touch()


def need_commit(root: Path, commit: str, environ: Mapping[str, str]) -> None:
    """Fetch it unless it is here: all branches first, then by its name, which not every server allows."""
    for fetch in ([], ["fetch", "--quiet", "--no-tags", "origin"], ["fetch", "--quiet", "--no-tags", "origin", commit]):
        words = ""
        if fetch:
            try:
                run_git(root, environ, *fetch)
            except BallastError as error:
                words = str(error)
        with suppress(BallastError):
            run_git(root, environ, "cat-file", "-e", f"{commit}^{{commit}}")
            return
    raise BallastError(
        f"commit {commit} is not to be had from the git remote `origin` of {root}; push it there: git push origin HEAD\n{words}"
    )


def prune(root: Path, kept: Path, environ: Mapping[str, str]) -> None:
    """Remove the least recently used ones, as far as nobody works in them."""
    locks = sorted(kept.parent.glob("*.lock"), key=lambda file: file.stat().st_mtime, reverse=True)
    for lock in [file for file in locks if re.fullmatch(r"[0-9a-f]{12}\.lock", file.name)][NUM_KEPT:]:
        with suppress(BlockingIOError), hold(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            remove_checkout(root, lock.with_suffix(""), environ)
            lock.unlink()


def remove_checkout(root: Path, folder: Path, environ: Mapping[str, str]) -> None:
    if folder.exists():
        mark_of(folder).unlink(missing_ok=True)
        with suppress(BallastError):  # git does not know it, when it was killed very early
            run_git(root, environ, "worktree", "remove", "--force", "--force", str(folder))
        subprocess.run(["rm", "-rf", str(folder)], check=True)  # read-only folders of DVC's included
    run_git(root, environ, "worktree", "prune")


def is_whole(folder: Path) -> bool:
    return mark_of(folder).exists()


def mark_of(folder: Path) -> Path:
    return folder / ".work" / "checkout-is-whole"


def lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def run_git(root: Path, environ: Mapping[str, str], *words: str) -> str:
    """Its output. It never asks for a password: there is nobody to answer."""
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=root,
            env={**environ, "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BallastError(f"git {words[0]} cannot be run in {root}: {redact(str(error), environ)}") from None
    if done.returncode != 0:
        raise BallastError(f"git {words[0]} failed in {root}: {redact(done.stderr.strip() or done.stdout.strip(), environ)}")
    return done.stdout


@contextmanager
def hold(file: Path, kind: int) -> Iterator[int]:
    descriptor = take(file, kind)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take(file: Path, kind: int) -> int:
    """An open descriptor with a lock on the file; BlockingIOError where LOCK_NB is asked for and another has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
