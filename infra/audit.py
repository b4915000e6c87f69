"""Known vulnerabilities of everything the lock files install: `make audit`, every week in .github/workflows/audit.yml.

    .venv/bin/python -m infra.audit [LOCK ...]       # all of them by default

Exit code 0: none known. 1: at least one (listed). 3: nobody could be asked, which says nothing about the packages. pip-audit
runs in an environment of its own, made by uv; it asks PyPI, or OSV with AUDIT_SERVICE=osv. A package that the service does not
know it calls "skipped", and ends well: so a release with well known faults is asked as well, and must be found.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = ROOT / "infra" / "audit_allowed.toml"
PIP_AUDIT = "pip-audit==2.10.1"
CANARY = ("jinja2", "2.10")
"""Has several published vulnerabilities; a service that finds none there knows none at all."""
CLEAN, VULNERABLE, NOT_ASKED = 0, 1, 3
LIMIT_SECONDS = 1200


class Fault(NamedTuple):
    package: str
    version: str
    id: str
    aliases: tuple[str, ...]
    fixed_in: tuple[str, ...]


class NotAskedError(Exception):
    """The service of vulnerabilities, or pip-audit itself, could not be had."""


def main() -> int:
    locks = [Path(word) for word in sys.argv[1:]] or sorted(ROOT.glob("requirements*.lock"))
    try:
        allowed = read_allowed(ALLOWED.read_text(encoding="utf-8"), date.today())
        faults, unknown = judge(ask(locks))
    except NotAskedError as error:
        print(f"error: {error}\nNothing was audited. Run it where the service can be reached: make audit", file=sys.stderr)
        return NOT_ASKED
    left = [fault for fault in faults if not {(fault.package, name) for name in (fault.id, *fault.aliases)} & allowed.keys()]
    for fault in left:
        fix = f"fixed in {', '.join(fault.fixed_in)}" if fault.fixed_in else "no release mends it"
        print(f"{fault.package} {fault.version}: {fault.id} ({', '.join(fault.aliases)}), {fix}")
    for name in unknown:
        print(f"not known to the service, not audited: {name}")
    print(f"{len(left)} known vulnerabilities in {', '.join(path.name for path in locks)}; {len(faults) - len(left)} allowed")
    return VULNERABLE if left else CLEAN


def ask(locks: Sequence[Path]) -> list[dict[str, Any]]:
    """What pip-audit says of every package of the locks and of the canary."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary.txt"
        canary.write_text("==".join(CANARY) + "\n", encoding="utf-8")
        told: list[dict[str, Any]] = []
        for lock in [canary, *locks]:  # one after the other: they hold other releases of one package
            told += run_pip_audit(lock)
            if lock == canary:
                judge(told)
    return told


def run_pip_audit(lock: Path) -> list[dict[str, Any]]:
    service = os.environ.get("AUDIT_SERVICE", "pypi")
    command = [str(ROOT / "infra" / "install_lock.sh"), "--uv", sys.executable, "tool", "run", "--from", PIP_AUDIT, "pip-audit"]
    options = ["--requirement", str(lock), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, *options, "--vulnerability-service", service],
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotAskedError(f"{lock.name}: {service} gave no answer within {LIMIT_SECONDS} s") from None
    return parse(done.stdout, done.stderr, service)


def parse(out: str, errors: str, service: str) -> list[dict[str, Any]]:
    """pip-audit's own exit code is 1 for a vulnerability and for a network that is not there: its JSON tells them apart."""
    try:
        dependencies: list[dict[str, Any]] = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        words = (errors.strip() or "no output").splitlines()[-1][:300]
        raise NotAskedError(f"the vulnerability service {service} cannot be asked: {words}") from None
    return dependencies


def judge(told: Sequence[Mapping[str, Any]]) -> tuple[list[Fault], list[str]]:
    """Faults, and packages that the service does not know; refused as no answer where it does not know the canary's."""
    known = {(one["name"].lower(), str(one.get("version"))): one.get("vulns", []) for one in told if "skip_reason" not in one}
    if not known.get(CANARY):
        raise NotAskedError(
            f"the service answers, but knows no vulnerability of {' '.join(CANARY)}, which has several: a mirror without that "
            "knowledge? Try AUDIT_SERVICE=osv"
        )
    faults = {
        Fault(name, version, one["id"], tuple(one.get("aliases", ())), tuple(one.get("fix_versions", ())))
        for (name, version), vulnerabilities in known.items()
        if (name, version) != CANARY
        for one in vulnerabilities
    }
    return sorted(faults), sorted({one["name"] for one in told if "skip_reason" in one})


def read_allowed(text: str, today: date) -> dict[tuple[str, str], str]:
    """(package, id) -> reason of the exceptions that still hold; one without reason or day is a fault of the file."""
    allowed = {}
    for entry in tomllib.loads(text).get("allowed", []):
        missing = {"id", "package", "reason", "until"} - entry.keys()
        if missing or not entry["reason"].strip() or not isinstance(entry["until"], date):
            raise SystemExit(f"error: {ALLOWED.name}: {entry.get('id', entry)} lacks {sorted(missing) or 'a reason and a day'}")
        if today < entry["until"]:
            allowed[entry["package"].lower(), entry["id"]] = entry["reason"]
    return allowed


if __name__ == "__main__":
    sys.exit(main())
