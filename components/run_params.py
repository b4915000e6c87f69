"""Where stages run: which work pool takes which stage (read by flows.pipeline alone), and how many processes share a training."""

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


class LaunchParams(Section):
    """On how many processes (ranks) a training runs, and what makes one training of them: docs/many-gpus.md.

    Never part of what decides a model: more ranks share the same steps.
    """

    engine: Literal["single", "ddp", "fsdp2", "deepspeed_zero3"] = "single"
    num_processes: Count = 1
    """Ranks in all, on all machines; the stage starts them here unless it is one of them already (RANK is set)."""
    config: str | None = None
    """An accelerate configuration of one's own. None: torchrun for ddp and fsdp2, infra/accelerate/deepspeed_zero3.yaml."""

    @model_validator(mode="after")
    def _several_processes_need_an_engine(self) -> Self:
        if self.engine == "single" and (self.num_processes > 1 or self.config is not None):
            raise ValueError(
                f"engine 'single' is one process, without a configuration; for {self.num_processes} processes set engine: ddp "
                "(the model fits on one GPU) or fsdp2 (it does not)"
            )
        if self.engine != "single" and self.num_processes == 1:
            raise ValueError(f"engine {self.engine!r} shares the work of several processes; set num_processes, or engine: single")
        return self

    def refuse_what_cannot_be_shared(self, batch_size: int, micro_batch_size: int, *, stops_early: bool) -> None:
        """A step of the training is whole micro-batches on every rank."""
        if self.engine == "deepspeed_zero3" and stops_early:
            raise ValueError(
                "launch.engine deepspeed_zero3: training.early_stopping cannot keep and put back weights that DeepSpeed holds; "
                "switch it off, or set launch.engine: fsdp2"
            )
        if batch_size % (micro_batch_size * self.num_processes):
            raise ValueError(
                f"launch.num_processes {self.num_processes}: training.batch_size {batch_size} is not a multiple of "
                f"micro_batch_size {micro_batch_size} x {self.num_processes} processes; lower training.micro_batch_size"
            )
