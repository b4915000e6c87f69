"""Laws of the images: linted, alike but for torch, nothing in them but the commit; and their first command, run for real."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.compose_services import ROOT

BIN = Path(sys.executable).parent
DOCKER = ROOT / "infra" / "docker"
FILES = [DOCKER / "cpu.Dockerfile", DOCKER / "gpu.Dockerfile"]
MAY_DIFFER = re.compile(r"^#|HEALTHCHECK|torch\.version\.cuda|NVIDIA_|\"--pool\"")


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say_and_sees_a_mistake(file: Path, tmp_path: Path) -> None:
    assert subprocess.run([BIN / "hadolint", file], capture_output=True, text=True, check=False).stdout == ""
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(text_of(file).replace("ARG PYTHON_IMAGE=python:3.11.17-slim\nFROM ${PYTHON_IMAGE}", "FROM python:latest"))
    assert "DL3007" in subprocess.run([BIN / "hadolint", wrong], capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_image_is_the_locks_and_the_commit_and_runs_as_nobody_special(file: Path) -> None:
    text = text_of(file)
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim$", text, re.MULTILINE)
    assert "install_lock.sh /opt/venv/bin/python requirements.lock requirements-infra.lock" in text
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) == [
        "requirements.lock requirements-infra.lock ./",
        "infra/install_lock.sh infra/",
        ".git /source/.git",
    ]
    assert not re.search(r"https?://", text), "package sources come from the builder's settings"


def test_the_two_images_differ_in_torchs_build_the_gpu_and_the_pool_only() -> None:
    cpu, gpu = ({line for line in text_of(file).splitlines() if line and not MAY_DIFFER.search(line)} for file in FILES)
    assert cpu == gpu


def test_nothing_in_an_image_reports_home_or_reads_pickles() -> None:
    for name, value in {
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }.items():
        for file in FILES:
            assert re.search(rf"\b{name}={value}( \\)?$", text_of(file), re.MULTILINE), name


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the Dockerfiles' stage `checkout` makes: a clone of a .git folder alone, without the address it came from."""
    source, copied, root = tmp_path / "source", tmp_path / "copied", tmp_path / "ballast"
    (source / "infra" / "docker").mkdir(parents=True)
    (source / "infra" / "docker" / "entrypoint.sh").write_text(text_of(DOCKER / "entrypoint.sh"))
    (source / "infra" / "docker" / "entrypoint.sh").chmod(0o755)
    (source / ".gitignore").write_text(".env\n")
    git(source, "init", "--quiet")
    subprocess.run([BIN / "dvc", "init", "--quiet"], cwd=source, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    git(source, "remote", "add", "origin", "https://token:of-somebody@git.example/ballast")
    git(source, "add", ".")
    git(source, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all")
    (source / ".env").write_text("PASSWORD=x")
    copied.mkdir()
    (source / ".git").rename(copied / ".git")
    git(tmp_path, "clone", "--quiet", "--no-local", str(copied), str(root))
    git(root, "remote", "remove", "origin")
    return root


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def enter(checkout: Path, **environ: str) -> tuple[int, str]:
    """The image's first command, with a command of ours to become."""
    command = [checkout / "infra" / "docker" / "entrypoint.sh", "sh", "-c", "git remote -v; dvc remote list; git status --short"]
    names = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(checkout.parent), "DVC_NO_ANALYTICS": "1", **environ}
    process = subprocess.run(command, cwd="/", env=names, capture_output=True, text=True, check=False)
    return process.returncode, process.stdout + process.stderr


def test_the_checkout_of_an_image_is_the_commit_and_nothing_else(checkout: Path) -> None:
    assert not (checkout / ".env").exists()
    assert [file for file in (checkout / ".git").rglob("*") if file.is_file() and b"of-somebody" in file.read_bytes()] == []
    assert git(checkout, "status", "--short") == ""


def test_the_first_command_shows_git_and_dvc_where_things_are_and_leaves_the_checkout_clean(checkout: Path) -> None:
    assert enter(checkout) == (0, "")
    addresses = {"BALLAST_GIT_URL": "https://git.example/ballast", "BALLAST_DVC_REMOTE": "s3://dvc"}
    for _ in range(2):  # a container that is started again
        code, out = enter(checkout, **addresses)
        assert code == 0, out
        assert "origin\thttps://git.example/ballast (fetch)" in out
        assert re.search(r"^storage\s+s3://dvc\s+\(default\)$", out, re.MULTILINE), out
        assert "config" not in out, "the remote is the container's own setting, no change of the repository"


def test_the_first_command_says_when_a_newer_image_has_an_older_checkout(checkout: Path) -> None:
    commit = checkout.parent / "ballast.commit"
    commit.write_text(git(checkout, "rev-parse", "HEAD"))
    assert enter(checkout) == (0, "")
    git(checkout, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "--message=results on top")
    assert enter(checkout) == (0, "")
    commit.write_text(f"{'a' * 40}\n")
    code, out = enter(checkout)
    assert (code, f"lacks the commit of its image, {'a' * 40}" in out) == (0, True)


def test_the_first_command_refuses_an_address_with_a_password(checkout: Path) -> None:
    code, out = enter(checkout, BALLAST_GIT_URL="https://somebody:secret@git.example/ballast")
    assert (code, "secret" in out) == (2, False)
    assert "BALLAST_GIT_URL holds a password" in out
