"""Command `promote`: make a registered version the champion. No stage: `dvc repro` never runs it.

    make promote VERSION=3 WHY="better on OOD" [WHO="anna"] [FORCE=1]

Takes registration.model_name and the MLflow registry. Refuses a version that the gate has not let pass (exit code 4), unless
FORCE=1, which is recorded. Who, when and why are kept in the registry: docs/promotion.md.
"""

import argparse
from typing import Any

from components.errors import ParamsError
from components.params import load_params
from flows.by_hand import name_user, run_by_hand


def promote(version: str, why: str, who: str = "", force: bool = False) -> dict[str, Any]:
    from components import promotion

    if not version.isdigit():
        raise ParamsError(
            f'VERSION must be the number of a registered version, found {version!r}: make promote VERSION=3 WHY="…"'
        )
    name = load_params().registration.model_name
    done = promotion.promote(name, int(version), who=who or name_user(), why=why, force=force)
    previous = "it was champion already" if done.entry is None else f"before: version {done.entry['previous'] or 'none'}"
    return {"champion": f"models:/{name}@champion", "version": f"{done.version} ({previous})"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description="Make a registered version the champion.")
    parser.add_argument("version")
    parser.add_argument("--why", default="", help="the reason, kept in the registry")
    parser.add_argument("--who", default="", help="git's user or the login if not given")
    parser.add_argument("--force", action="store_true", help="although the gate did not pass it; recorded")
    given = parser.parse_args()
    run_by_hand(promote, [given.version], **vars(given))
