"""The base of every stage's settings.

A stage's settings live beside its code; `stages.settings` composes them. They are frozen, and a key that does not
exist is an error. A field marked `Changeable` may differ when a run folder is continued: it changes how far or
how fast a stage goes, not what an earlier stage has already computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.registry import Registry, UnknownPartError


class _Changeable:
    """Marks a setting that may change when a run folder is continued."""


Changeable: Final = _Changeable()


class StageConfig(BaseModel):
    """Frozen settings of one stage; unknown keys are errors; the docstring under a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Config = TypeVar("Config", bound=StageConfig)


def validated(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Settings from keywords; `UserError` for an unknown one, and for a value that does not fit."""
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:1])
        if unknown := unknown_part(first, f" ({key})"):
            raise unknown from error
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown setting {key}", want=f"one of {', '.join(config.model_fields)}") from error
        raise UserError(
            f"the setting {key} does not fit", got=repr(first["input"]), want=expectation(first["msg"])
        ) from error


def require_part(registry: Registry[Any], name: str) -> str:
    """The validator of a setting that names a part: the name, where the registry has it. Entry points are imported."""
    if name not in registry:
        raise PydanticCustomError(
            "unknown_part",
            "Input should be one of {names}",
            {"kind": registry.kind, "name": name, "names": registry.listed()},
        )
    _ = registry[name]
    return name


def unknown_part(error: Mapping[str, Any], place: str) -> UnknownPartError | None:
    """The user's line for an error of `require_part`, as pydantic reports it; None for any other error."""
    if error["type"] != "unknown_part":
        return None
    about = error["ctx"]
    return UnknownPartError(about["kind"], about["name"], about["names"], place)


def from_keywords(kind: type[Config], config: Config | None, settings: Mapping[str, Any]) -> Config:
    """Settings given all at once or one by one; `UserError` where both ways are used."""
    if config is None:
        return validated(kind, settings)
    if settings:
        raise UserError("settings are passed twice", got=f"config and {', '.join(settings)}", want="one of them")
    return config


def expectation(message: str) -> str:
    """What a message of pydantic's wants, without how it begins."""
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def is_changeable(config: type[BaseModel], field: str) -> bool:
    """Tell whether `field` of `config` is marked `Changeable`."""
    return any(item is Changeable for item in config.model_fields[field].metadata)
