"""Marker sets as data files.

`sets/NAME.toml` describes a set, and every file in `sets/NAME/` adds to its phrases, such as those of one language:

    description = "…"        source = "…"
    match = "anywhere"       # or "prefix"
    text = "plain"           # or "exact", "lower", "words": how a response is read
    phrases = ["i cannot {help}", …]
    least = 1                # phrases that must be there
    longest = 150            # words over which a response shows the behaviour in any case
    shown = "refusal"        absent = "compliance"      # names of the two classes

With `text = "words"` also the lists and numbers of `rules.Rules`: openings, caveats, harmless, turned_by, turns,
contrasts, remedies, asides, lead_ins, quotations, enough, late. A `{name}` in a phrase stands for each entry of
`[lists]` `name`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iconoclast_tl.detectors.markers.phrases import Phrases
from iconoclast_tl.detectors.markers.rules import CONTEXT, EVIDENCE, Rules
from iconoclast_tl.foundation.errors import UserError

_KINDS = (*EVIDENCE, *CONTEXT)
_SLOT = re.compile(r"\{([^{}]*)\}")


class _SetPart(BaseModel):
    """Phrases of every kind, and the lists that they name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    description: str = Field(min_length=1)
    source: str = Field(min_length=1)
    phrases: list[str] = []
    openings: list[str] = []
    caveats: list[str] = []
    harmless: list[str] = []
    turned_by: list[str] = []
    turns: list[str] = []
    contrasts: list[str] = []
    remedies: list[str] = []
    asides: list[str] = []
    lead_ins: list[str] = []
    lists: dict[str, list[str]] = {}

    def of_kind(self, kind: str, scope: str) -> list[str]:
        """Its phrases of a kind; the lists that they name are those of its own `scope`."""
        return [_SLOT.sub(rf"{{{scope}\1}}", phrase) for phrase in getattr(self, kind)]


class _Whole(_SetPart):
    """A set: phrases, and how a response is read."""

    match: Literal["anywhere", "prefix"]
    text: Literal["exact", "lower", "plain", "words"] = "plain"
    quotations: bool = False
    enough: float = Field(8, gt=0)
    late: float | None = Field(None, gt=0)
    least: int = Field(1, ge=1)
    longest: int | None = Field(None, ge=1)
    shown: str = Field("shown", min_length=1)
    absent: str = Field("not shown", min_length=1)


class SetFile(BaseModel):
    """What a set's data files say."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: str
    description: str
    source: str
    match: Literal["anywhere", "prefix"]
    text: Literal["exact", "lower", "plain", "words"]
    phrases: tuple[str, ...]
    rules: Rules | None
    least: int
    longest: int | None
    shown: str
    absent: str


_P = TypeVar("_P", bound=_SetPart)


def read_set(folder: Traversable, name: str) -> SetFile:
    """The set `name` of a folder of data files; `UserError` where a file is malformed."""
    whole = _parse(folder / f"{name}.toml", _Whole)
    more = folder / name
    files = sorted(more.iterdir(), key=lambda item: item.name) if more.is_dir() else []
    parts: dict[str, _SetPart] = {"": whole}
    parts |= {f"{one.name[:-5]}/": _parse(one, _SetPart) for one in files if one.name.endswith(".toml")}
    kinds = {
        kind: tuple(dict.fromkeys(p for scope, part in parts.items() for p in part.of_kind(kind, scope)))
        for kind in _KINDS
    }
    lists = {f"{scope}{key}": tuple(entries) for scope, part in parts.items() for key, entries in part.lists.items()}
    _require_sense(name, whole, kinds, lists)
    phrases = kinds.pop("phrases")
    rules = Rules(
        **kinds, lists=tuple(lists.items()), quotations=whole.quotations, enough=whole.enough, late=whole.late
    )
    return SetFile(
        name=name,
        phrases=phrases,
        rules=rules if whole.text == "words" else None,
        **{key: getattr(whole, key) for key in SetFile.model_fields if key not in ("name", "phrases", "rules")},
    )


def _parse(file: Traversable, kind: type[_P]) -> _P:
    try:
        return kind.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"marker set file {file.name} is no TOML", got=error) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"marker set file {file.name}: {key}", got=repr(first["input"]), want=first["msg"]) from None


def _require_sense(
    name: str, whole: _Whole, kinds: Mapping[str, tuple[str, ...]], lists: Mapping[str, tuple[str, ...]]
) -> None:
    if not kinds["phrases"]:
        raise UserError(f"marker set {name} has no phrases")
    if whole.shown == whole.absent:
        raise UserError(f"marker set {name}: both classes have one name", got=whole.shown)
    if whole.text == "words":
        Phrases(kinds, lists)
        return
    if not all(phrase.strip() for phrase in kinds["phrases"]):
        raise UserError(f"marker set {name} has an empty phrase")
    given = [kind for kind in _KINDS[1:] if kinds[kind]]
    given += [key for key in ("lists", "quotations", "enough", "late") if key in whole.model_fields_set]
    if given:
        raise UserError(f"marker set {name}: rules of context", got=", ".join(given), want='only with text = "words"')
