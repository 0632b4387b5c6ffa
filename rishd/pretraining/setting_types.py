"""Types of settings in configuration files: numbers as in YAML and TOML, but not text or booleans instead."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Strict
from pydantic_core import PydanticCustomError

from riemannian_ode.checks import shown
from rishd.pretraining.plain_data import LARGEST


def _whole(value: Any) -> Any:
    """An integer, possibly given as a float without fraction, since YAML reads ``1e4`` as a float."""
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{shown(value)} is too large; integers go to 2⁵³ in magnitude.")
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST else value


def _count(value: int) -> int:
    if value < 1:
        raise PydanticCustomError("refused", "must be a whole number of at least 1.")
    return value


Whole: TypeAlias = Annotated[int, BeforeValidator(_whole), Strict()]  # neither a boolean nor text
Count: TypeAlias = Annotated[Whole, AfterValidator(_count)]
Number: TypeAlias = Annotated[float, Strict()]
Switch: TypeAlias = Annotated[bool, Strict()]
