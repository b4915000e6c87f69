"""What the sections of params.yaml are made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
CellName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_zero_byte(cls, value: Any) -> Any:
        """No path, name or command goes on behind one; each tool would cut it at another place or fail in its own way."""
        if isinstance(value, str) and "\0" in value:
            raise ValueError("must not hold a NUL character")
        return value
