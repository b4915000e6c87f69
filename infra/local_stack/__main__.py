"""Prefect, MLflow and their workers on one machine.

    python -m infra.local_stack up              # make up: start what is not running
    python -m infra.local_stack status [--json] # make stack
    python -m infra.local_stack down            # make down: end everything; histories, runs and models stay
    python -m infra.local_stack worker gpu      # make worker POOL=gpu: this machine joins the servers of another

Where and on which ports: infra/README.md.
"""

import argparse
import json
import os
import sys
from typing import Any

from components.errors import BallastError
from infra.local_stack import stack


def main() -> None:
    """The exit code is 0 if everything is as asked; for `status`, if everything that was started runs."""
    parser = argparse.ArgumentParser(prog="python -m infra.local_stack", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start what is not running")
    commands.add_parser("down", help="end everything; histories, runs and models stay")
    commands.add_parser("status", help="what runs").add_argument("--json", action="store_true", help="for programs")
    commands.add_parser("worker", help="start the workers of a pool for servers elsewhere").add_argument("pool")
    given = parser.parse_args()
    try:
        code = run(given)
    except BallastError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


def run(given: argparse.Namespace) -> int:
    if given.command == "up":
        stack.up(os.environ, say)
    elif given.command == "worker":
        stack.start_pool(given.pool, os.environ, say)
    elif given.command == "down":
        stack.down(say)
    else:
        rows = stack.status()
        print(json.dumps(rows, indent=1) if given.json else render(rows))
        return int(not rows or any(row["state"] != "running" for row in rows))
    return 0


def say(words: str) -> None:
    print(words, flush=True)


def render(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "nothing was started here; make up"
    head = f"{'service':14} {'state':9} {'pid':>8}  {'since (UTC)':25} {'MB':>6}  "
    return "\n".join([head.rstrip(), *(render_row(row) for row in rows)])


def render_row(row: dict[str, Any]) -> str:
    megabytes = f"{row['memory_bytes'] / 1e6:.0f}" if row["memory_bytes"] else ""
    return f"{row['service']:14} {row['state']:9} {row['pid']:>8}  {row['since']:25} {megabytes:>6}  {row['url'] or row['log']}"


if __name__ == "__main__":
    main()
