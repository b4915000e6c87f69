"""Laws of the folder of the passes: two preparations do not work in it at once, and a full disk is said as such."""

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.data_preparation.workplace import alone_in
from components.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
SECOND = """
import sys
from pathlib import Path
from components.data_preparation.workplace import alone_in
with alone_in(Path(sys.argv[1])):
    print("alone", flush=True)
"""


def test_a_second_preparation_waits_and_says_so(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        second = subprocess.Popen([sys.executable, "-c", SECOND, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert second.stdout.readline().startswith(f"waiting for another prepare_data, which works in {tmp_path}")
        time.sleep(0.2)
        assert second.poll() is None
    assert second.stdout.read() == "alone\n"
    assert second.wait(30) == 0


def test_a_full_disk_is_said_and_other_errors_come_through(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the disk of .* is full\. Make room"), alone_in(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), alone_in(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
