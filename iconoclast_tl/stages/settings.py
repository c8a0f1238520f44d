"""All settings, composed from each stage's own, and where each effective value came from.

    command line  >  environment ICONOCLAST_TL_*  >  recipe (TOML)  >  run folder  >  preset  >  defaults

Settings are named by stage, such as `search.n_trials`; in the environment, `ICONOCLAST_TL_SEARCH__N_TRIALS`. A key
that does not exist is an error wherever it stands. A run folder's own settings are the defaults for whatever
continues it.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings.exceptions import SettingsError

from iconoclast_tl.activations.collect import ActivationConfig
from iconoclast_tl.attribution.config import AttributionConfig
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.evaluation.harness import HarnessConfig
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.folding.fold import FoldConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.plugins import VARIABLE
from iconoclast_tl.foundation.stage_config import Changeable, StageConfig, expectation, is_changeable, unknown_part
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.prompts.contrast import PromptConfig
from iconoclast_tl.scores.config import ScoreConfig
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.presets import PRESETS

PREFIX = "ICONOCLAST_TL_"
Nested = dict[str, Any]


class Settings(StageConfig):
    """The settings of a run."""

    model: ModelConfig = ModelConfig()
    prompts: PromptConfig = PromptConfig()
    activations: ActivationConfig = ActivationConfig()
    directions: Annotated[DirectionConfig, Changeable] = DirectionConfig()
    """May change until a search has gone by them, which is checked where they are estimated."""
    edit: EditConfig = EditConfig()
    attribution: AttributionConfig = AttributionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    harness: HarnessConfig = HarnessConfig()
    scores: ScoreConfig = ScoreConfig()
    search: SearchConfig = SearchConfig()
    fold: FoldConfig = FoldConfig()
    behaviour: str = "refusal"
    """What the behaviour is called in results and model cards."""
    seed: int = Field(0, ge=0)
    """Fixes splits and search."""


class _Sources(BaseSettings, Settings):
    """What pydantic-settings reads sources by. Never made: it would take `_env_file` and the like for options."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")


@dataclass(frozen=True)
class Effective:
    """Settings, and for every dotted key the source of its value."""

    settings: Settings
    provenance: Mapping[str, str]

    def entries(self) -> list[tuple[str, Any, str]]:
        """(key, value, source) of every setting, in order."""
        values = flatten(self.settings.model_dump(mode="json"))
        return [(key, value, self.provenance.get(key, "default")) for key, value in values.items()]


def effective_settings(
    command_line: Nested, recipe: Path | None = None, run_folder: Mapping[str, Any] | None = None
) -> Effective:
    """Merge all sources; `run_folder` is the settings that a folder's manifest holds.

    Raises `UserError` for unknown keys, wrong types, an unreadable recipe, and for a continued run folder whose
    settings would change in a way that what is already in it does not allow.
    """
    sources: list[tuple[str, Mapping[str, Any]]] = [
        ("command line", command_line),
        ("environment", _environment()),
        (f"recipe {recipe}", _recipe(recipe)),
        ("run folder", run_folder or {}),
    ]
    sources.append(_preset(sources))
    merged: Nested = {}
    for _, values in reversed(sources):
        merged = merge(merged, values)
    settings = _validate(merged, sources)
    if run_folder is not None:
        # A setting that is younger than the folder is what the preset says.
        _require_same(settings, _validate(merge(sources[-1][1], run_folder), sources))
    flat = [(name, set(flatten(values))) for name, values in sources]
    keys = flatten(settings.model_dump(mode="json"))
    provenance = {key: next(name for name, found in flat if key in found) for key in keys if _in_any(key, flat)}
    if provenance.get("search.n_trials") == "command line" and settings.search.method == "gradient":
        raise UserError("a search by gradient has no trials", mend="pass --search tpe or outer, or leave --trials out")
    if provenance.get("search.warm_start") == "command line" and settings.search.warm_start:
        _require_first_trials(settings)
    return Effective(settings, provenance)


def parse_assignments(assignments: Sequence[str]) -> Nested:
    """`["search.n_trials=60", …]` as nested settings; lists and tables as JSON, `null` for nothing."""
    nested: Nested = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError("--set takes key=value", got=repr(assignment), want="for example search.n_trials=60")
        _require_whole_table(key.strip())
        nested = merge(nested, nest(key.strip(), _parse_value(text.strip())))
    return nested


def _require_whole_table(key: str) -> None:
    """A row of a table alone would leave out those that were given before it; and a row's name may hold dots."""
    table = next((table for table in _tables() if key.startswith(f"{table}.")), None)
    if table is not None:
        raise UserError(f"{table} is a table, set as a whole", got=repr(key), want=f'{table}={{"…": …, …}} as JSON')


def nest(key: str, value: Any) -> Nested:
    """`nest("a.b", 1)` is `{"a": {"b": 1}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; lists are values, and so are tables."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and prefix + key not in _tables():
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _in_any(key: str, flat: list[tuple[str, set[str]]]) -> bool:
    return any(key in found for _, found in flat)


def _parse_value(text: str) -> Any:
    if text == "null":
        return None
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                "a list in --set is JSON", got=text, want='for example ["i cannot", "i will not"]'
            ) from error
    return text  # pydantic converts numbers and booleans, and knows which fields are text


def _environment() -> Nested:
    for name in os.environ:
        head = name.upper().removeprefix(PREFIX).split("__")[0].lower()
        if name.upper().startswith(PREFIX) and head not in Settings.model_fields and name.upper() != VARIABLE:
            raise UserError(f"unknown setting in the environment: {name}", want=_stages())
    try:
        return dict(EnvSettingsSource(_Sources)())
    except SettingsError as error:
        raise UserError("a setting in the environment does not parse", got=error, want="JSON for lists") from error


def _recipe(path: Path | None) -> Nested:
    if path is None:
        return {}
    if not path.is_file():
        raise UserError(f"there is no recipe {path}", want="a TOML file")
    try:
        return dict(TomlConfigSettingsSource(_Sources, path)())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} does not parse", got=error, want="TOML in UTF-8") from error


def _preset(sources: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, Mapping[str, Any]]:
    """The preset that the first source to name one names, as the last source."""
    default = Settings.model_fields["search"].default.preset
    named = (flatten(values).get("search.preset") for _, values in sources)
    name = next((found for found in named if found is not None), default)
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError("search.preset does not fit", got=repr(name), want=f"one of {', '.join(PRESETS)}")
    return f"preset {name}", PRESETS[name]


def merge(below: Mapping[str, Any], above: Mapping[str, Any], prefix: str = "") -> Nested:
    """`below` with the values of `above` laid over it, nested keys one by one; settings that are tables as a whole."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value, f"{prefix}{key}.") if both and prefix + key not in _tables() else value
    return merged


@cache
def _tables() -> frozenset[str]:
    """Dotted keys of the settings that are tables themselves, such as `model.max_memory`."""
    return frozenset(_table_keys(Settings))


def _table_keys(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _table_keys(field.annotation, f"{prefix}{name}.")
        elif "dict[" in str(field.annotation):
            yield f"{prefix}{name}"


def _validate(merged: Nested, sources: Sequence[tuple[str, Mapping[str, Any]]]) -> Settings:
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first, key = error.errors()[0], _key_of(error.errors()[0]["loc"])
        source = next((name for name, values in sources if _holds(values, key)), None)
        if unknown := unknown_part(first, f" ({key}{f', {source}' if source else ''})"):
            raise unknown from error
        place = f" ({source})" if source else ""
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown setting {key}{place}", want=_siblings(key), mend="see `config show`") from error
        # A setting that may be of several kinds fails at every one of them.
        wants = [expectation(one["msg"]) for one in error.errors() if _key_of(one["loc"]) == key]
        got = repr(first["input"])
        raise UserError(f"the setting {key}{place} does not fit", got=got, want=" or ".join(wants)) from error


def _holds(values: Any, key: str) -> bool:
    """Whether nested settings say anything at a dotted key."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _key_of(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if not _is_union_tag(part))


def _is_union_tag(part: int | str) -> bool:
    """Pydantic names the member of a union (`tuple[str, ...]`) as if it were a key."""
    return isinstance(part, int) or part in ("str", "bool", "constrained-int") or "[" in part


def _siblings(key: str) -> str:
    """The keys that stand beside an unknown one."""
    config: type[BaseModel] = Settings
    for part in key.split(".")[:-1]:
        annotation = config.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        config = annotation
    return f"one of {', '.join(config.model_fields)}"


def _stages() -> str:
    return f"one of {', '.join(PREFIX + name.upper() for name in Settings.model_fields)}, then __SETTING"


def _require_same(now: Settings, before: Settings) -> None:
    """A continued folder keeps every setting that what is in it depends on."""
    fixed = set(_fixed_keys(Settings))
    old = flatten(before.model_dump(mode="json"))
    for key, value in flatten(now.model_dump(mode="json")).items():
        if key in fixed and value != old.get(key):
            raise UserError(
                f"the output folder holds a run with another {key}",
                got=value,
                want=old.get(key),
                mend="leave the setting as it was or pass another --out",
            )


def _require_first_trials(settings: Settings) -> None:
    if settings.search.method != "tpe":
        raise UserError(
            "a warm start is of a search over kernels",
            got=f"search.method {settings.search.method}",
            mend="pass --search tpe, or leave --warm-start out",
        )


def _fixed_keys(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in config.model_fields.items():
        if is_changeable(config, name):
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fixed_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
