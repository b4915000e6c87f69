"""Laws of disks that are full or read-only: on real mounts, in a process that has them to itself.

A tmpfs is mounted in a mount namespace of a forked child, where root or user namespaces allow it.
"""

import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.errors import ArtifactError
from components.teacher_cache import capture_progress, encoding, shard_capture
from components.teacher_cache.capture_progress import LEAST_BYTES_PER_TOKEN
from components.teacher_cache.disk_space import MARGIN
from components.teacher_cache.writer import Teacher, write_cache
from tests.components.teacher_cache.conftest import (
    SETTINGS,
    capture,
    files,
    forwarded,
    identity_of,
    largest_shard,
    left_over,
    planned,
    read_all,
    rows_twice,
)
from tests.conftest import build_rows, end_of_child, start_child

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
NO_MOUNTS = 77
OLD = build_rows(30, seed=8)
ROWS = [*OLD, *build_rows(300, seed=9)]


def own_mounts() -> bool:
    """Give this process mounts of its own, as root or as root of a user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if user == 0:
        is_done = libc.unshare(CLONE_NEWNS) == 0
    else:
        is_done = libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0
        if is_done:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return is_done and subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def on_a_disk(work: Callable[[Path], None], disk: Path, size: str) -> None:
    """Run `work` on a disk of that size at `disk`, in a child; a fault in the child fails the test."""
    disk.mkdir()

    def child() -> None:
        if not own_mounts() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]).returncode != 0:
            os._exit(NO_MOUNTS)
        work(disk)

    code = end_of_child(start_child(child))
    if code == NO_MOUNTS:
        pytest.skip("neither root nor a user namespace may mount a tmpfs here")
    assert code == 0, "see the traceback above"


def fill(disk: Path, bytes_left: int) -> Path:
    """A file that leaves so much room on the disk."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"")
    with ballast.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - bytes_left)))
    return ballast


def test_a_disk_that_cannot_hold_the_cache_is_refused_in_bytes_before_anything_is_forwarded(tmp_path: Path) -> None:
    def work(disk: Path) -> None:
        fill(disk, 16 * 1024)
        with pytest.raises(ArtifactError) as caught:
            capture(disk, ROWS)
        needed = MARGIN * LEAST_BYTES_PER_TOKEN * sum(shard.num_tokens for shard in planned(ROWS))
        assert f"needs about {needed:,.0f} bytes more under {disk}" in str(caught.value), caught.value
        assert re.search(r"which has [\d,]+ bytes free", str(caught.value)), caught.value
        assert "run the same command again" in str(caught.value)
        assert forwarded(disk) == {} and not (disk / "cache").exists()

    on_a_disk(work, tmp_path / "disk", "1m")


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_disk_that_fills_up_stops_the_capture_with_its_shards_and_the_old_cache_kept(
    tmp_path: Path, is_foreseen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_foreseen:  # somebody else fills the disk once we have looked
        monkeypatch.setattr(capture_progress, "refuse_small_disk", lambda *_: None)
    capture(tmp_path, OLD)
    old = files(tmp_path / "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "whole" / "cache")
    capture(tmp_path / "whole", ROWS)
    whole = files(tmp_path / "whole" / "cache")

    def work(disk: Path) -> None:
        shutil.copytree(tmp_path / "cache", disk / "cache")
        num_passes = 0

        def fill_after_some() -> None:
            nonlocal num_passes
            num_passes += 1
            if num_passes == 30:
                fill(disk, 4096)

        with pytest.raises(
            ArtifactError,
            match="needs about|the disk is full" if is_foreseen else r"the disk is full.*\(No space left on device\)",
        ) as caught:
            capture(disk, ROWS, react=fill_after_some)
        assert str(disk) in str(caught.value) and "run the same command again" in str(caught.value)
        assert files(disk / "cache") == old
        assert read_all(disk / "cache", OLD) == read_all(tmp_path / "cache", OLD)
        assert [path for path in disk.rglob("*.partial")] == []
        captured = len(forwarded(disk))
        with pytest.raises(ArtifactError, match=r"the disk is full|needs about"):
            capture(disk, ROWS)
        assert files(disk / "cache") == old
        mount("-o", "remount,size=32m", disk)
        capture(disk, ROWS)
        assert files(disk / "cache") == whole and left_over(disk) == []
        assert captured > 60 and rows_twice(disk) <= 2 * largest_shard(ROWS)

    on_a_disk(work, tmp_path / "disk", "4m")


ALLOCATING = ("link", "mkdir", "fsync", "open")


def fail_from(step: int, monkeypatch: pytest.MonkeyPatch, code: int) -> Callable[[], int]:
    """From step number `step` on whatever needs room on the disk fails; returns how to ask for the number of steps so far."""
    seen = 0

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            needs_room = function is not real_open or arguments[1] & os.O_CREAT
            seen += bool(needs_room)
            if needs_room and seen >= step and not str(arguments[0]).endswith(".lock"):
                raise OSError(code, os.strerror(code))
            return function(*arguments, **options)

        return call

    real_open = os.open
    for name in ALLOCATING:
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    return lambda: seen


def test_a_disk_that_is_full_at_any_step_is_one_clear_error_and_the_next_capture_goes_on(
    ram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = build_rows(12, seed=4)
    capture(ram / "older", few[3:9])
    old = files(ram / "older" / "cache")
    shutil.copytree(ram / "older" / "cache", ram / "whole" / "cache")
    capture(ram / "whole", few)
    new = files(ram / "whole" / "cache")
    step, num_failures = 0, 0
    while True:
        step += 1
        own = ram / str(step)
        shutil.copytree(ram / "older" / "cache", own / "cache")
        with monkeypatch.context() as patch:
            num_steps = fail_from(step, patch, errno.ENOSPC)
            try:
                capture(own, few)
            except ArtifactError as error:
                num_failures += 1
                assert "the disk is full" in str(error), step
        if num_steps() < step:
            break
        assert files(own / "cache") in (old, new), step
        assert list(own.rglob("*.partial")) == [], step
        capture(own, few)
        assert files(own / "cache") == new and left_over(own) == [], step
        assert rows_twice(own) <= largest_shard(few), step
    print(f"full at each of {step - 1} steps: {num_failures} errors, {step - 1 - num_failures} captures that could do without")
    assert num_failures > 25


def test_a_capture_refused_half_way_keeps_its_shards_and_can_be_retried_in_the_same_process(
    ram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that outlived the refusal would make the retry wait for itself, for ever."""

    def encode_slowly(*arguments: Any) -> Any:
        time.sleep(0.05)  # so that batches wait to be encoded when the refusal comes
        return encoding.encode(*arguments)

    begun = 0

    def refuse_third(*_: Any) -> None:
        nonlocal begun
        begun += 1
        if begun == 3:
            raise ArtifactError("no room")

    monkeypatch.setattr(shard_capture, "encode", encode_slowly)
    with monkeypatch.context() as patch:
        patch.setattr(capture_progress, "refuse_small_disk", refuse_third)
        with pytest.raises(ArtifactError, match="no room"):
            capture(ram, OLD)
    assert len(list((ram / ".work").rglob("shard-*.safetensors"))) == 2
    retry = start_child(lambda: (signal.alarm(20), capture(ram, OLD)))  # a child has its parent's locks
    assert end_of_child(retry) == 0
    assert rows_twice(ram) == 0


# ---- read-only ----


def test_a_read_only_cache_is_read_and_a_capture_into_it_is_refused_by_name(tmp_path: Path) -> None:
    def work(disk: Path) -> None:
        capture(disk, OLD)
        truth = read_all(disk / "cache", OLD)
        before = len(forwarded(disk))
        mount("-o", "remount,ro", disk)
        assert read_all(disk / "cache", OLD) == truth
        with pytest.raises(ArtifactError, match=rf"cannot be written: {disk}\S* is read-only \(Read-only file system\)"):
            capture(disk, ROWS)
        assert len(forwarded(disk)) == before and read_all(disk / "cache", OLD) == truth

    on_a_disk(work, tmp_path / "disk", "8m")


@pytest.mark.parametrize("options", ["rw", "ro"])
def test_a_cache_on_another_disk_than_the_work_is_refused_before_anything_is_forwarded(tmp_path: Path, options: str) -> None:
    """The last step is a rename, which must not be found impossible after hours."""

    def work(disk: Path) -> None:
        mount("-o", f"remount,{options}", disk)
        for target in (disk / "cache", disk):
            teacher = Teacher(lambda: pytest.fail("loaded"), 50)
            with pytest.raises(ArtifactError, match=f"cannot be put at {target}: it must be on the same disk as"):
                write_cache(teacher, OLD, identity_of(OLD), SETTINGS, target=target, work=tmp_path / ".work")

    on_a_disk(work, tmp_path / "disk", "8m")
