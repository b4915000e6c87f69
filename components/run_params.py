"""Where stages run: which work pool takes which stage. Read by flows.pipeline alone, so that editing it reruns nothing."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.param_types import Count, Section

HERE = "here"
"""The route of a stage that runs in the pipeline's own process group."""
PoolName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(@[\w.+-]+)?$")]


class PoolParams(Section):
    """A Prefect work pool whose workers take stages. `shared`: they work in the pipeline's own checkout (or see it over a network
    file system); `remote`: in clones of their own, and data travel through the DVC remote."""

    disk: Literal["shared", "remote"] = "shared"
    num_at_once: Count = 1
    """Stages that the pipeline sends there at the same time; more than the workers' limits would only wait."""


class RoutingParams(Section):
    """Stages (or single cells, which win) by the name of their pool; any other runs where the pipeline runs."""

    num_at_once_here: Count = 1
    num_retries: Annotated[int, Field(ge=0)] = 2
    """Of a stage that was lost (its worker died, it was killed or preempted); one that failed by itself would fail again."""
    retry_delay_seconds: Annotated[float, Field(ge=0.0)] = 10.0
    pools: dict[PoolName, PoolParams] = Field(default_factory=dict)
    stages: dict[StageName, PoolName] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _every_pool_is_described(self) -> Self:
        for stage, pool in self.stages.items():
            if pool != HERE and pool not in self.pools:
                raise ValueError(
                    f"stages.{stage}: {pool} is not one of the pools {sorted(self.pools)}; describe it under routing.pools"
                )
        return self

    def route(self, address: str) -> str:
        """The pool of a stage, given as `dvc repro` takes it, or `here`."""
        return self.stages.get(address) or self.stages.get(address.partition("@")[0]) or HERE

    def num_at_once(self, pool: str) -> int:
        return self.num_at_once_here if pool == HERE else self.pools[pool].num_at_once
