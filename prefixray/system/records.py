"""The building blocks of typed records: single values, constrained text and numbers, and a strict base class."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Count = PositiveInt | Literal["all"]

Share = Annotated[float, Field(ge=0.0, lt=1.0)]

Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Scalar = bool | int | float | str | None
