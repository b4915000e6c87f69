"""Command `rollback`: back to the champion before this one. No stage: `dvc repro` never runs it.

    make rollback WHY="it repeats itself" [WHO="anna"]

Swaps champion and previous_champion, so a second rollback takes the first one back. It asks no gate: docs/promotion.md.
"""

import argparse
from typing import Any

from components.params import load_params
from flows.by_hand import name_user, run_by_hand


def rollback(why: str, who: str = "") -> dict[str, Any]:
    from components import promotion

    name = load_params().registration.model_name
    done = promotion.rollback(name, who=who or name_user(), why=why)
    assert done.entry is not None
    return {
        "champion": f"models:/{name}@champion",
        "version": f"{done.version} (before: version {done.entry['previous'] or 'none'})",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.rollback", description="Back to the champion before this one.")
    parser.add_argument("--why", default="", help="the reason, kept in the registry")
    parser.add_argument("--who", default="", help="git's user or the login if not given")
    run_by_hand(rollback, [], **vars(parser.parse_args()))
