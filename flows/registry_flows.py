"""The acts on the registry as flows with a form in Prefect's UI: `promote` and `rollback`, for their deployments.

On the command line they are `make promote` and `make rollback` (flows/promote.py, flows/rollback.py), which do the work.
A worker's machine does not know who has filled in the form: so the form asks.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from components.errors import BallastError

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import State

Version = Annotated[int, Field(ge=1, description="The number of the registered version, as MLflow shows it.")]
Why = Annotated[str, Field(min_length=1, description="The reason; kept in the registry.")]
Who = Annotated[str, Field(min_length=1, description="Your name; kept in the registry.")]
Force = Annotated[bool, Field(description="Although the gate did not pass it; that is recorded, too.")]

promote: "Flow[..., State[dict[str, Any]]]"  # made by __getattr__
rollback: "Flow[..., State[dict[str, Any]]]"


def __getattr__(name: str) -> Any:
    """`from flows.registry_flows import promote` makes the flow; importing this module alone imports no Prefect."""
    if name in FORMS:
        return make_flow(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _promote(version: Version, why: Why, who: Who, force: Force = False) -> "State[dict[str, Any]]":
    """Make a registered version the champion, if the gate has let it pass."""
    from flows.promote import promote

    return conclude(lambda: promote(str(version), why=why, who=who, force=force))


def _rollback(why: Why, who: Who) -> "State[dict[str, Any]]":
    """Back to the champion before this one; a second rollback takes the first one back."""
    from flows.rollback import rollback

    return conclude(lambda: rollback(why=why, who=who))


FORMS: "dict[str, Callable[..., State[dict[str, Any]]]]" = {"promote": _promote, "rollback": _rollback}


@cache
def make_flow(name: str) -> "Flow[..., State[dict[str, Any]]]":
    """No retry: a refusal would be refused again, and what was done must not be done twice."""
    from prefect import flow

    function = FORMS[name]
    function.__name__ = function.__qualname__ = name
    return flow(name=name, persist_result=False, retries=0)(function)


def conclude(act: Callable[[], dict[str, Any]]) -> "State[dict[str, Any]]":
    """The flow run's last state: what has been done, or in one message why not."""
    from prefect.states import Completed, Failed

    try:
        done = act()
    except BallastError as error:
        return Failed(message=str(error))
    return Completed(message=", ".join(f"{key} {value}" for key, value in done.items()))
