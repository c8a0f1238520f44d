"""Prompt sets by name: `xstest`, `or-bench`, … stand for a dataset on the hub, its columns and which rows are meant.

    xstest                 the whole set
    xstest[:100]           the first hundred prompts of the set (also xstest@[:100])
    advbench@test[:50]     another split of the same dataset

The names are in `named_sets.toml`: what is shipped says where prompts are, never what they say.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

_SPEC: Final = re.compile(r"(?P<name>[^@\[#]+)(@(?P<split>[^\[#]*))?(?P<slice>\[[^#]*)?(#(?P<column>.+))?")


@dataclass(frozen=True)
class Where:
    """Which rows of a table belong to a set, by the text in one column; an empty tuple says nothing."""

    column: str
    is_: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()
    begins_not: tuple[str, ...] = ()

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether `row` belongs to the set."""
        text = str(row[self.column])
        wanted = (not self.is_ or text in self.is_) and (not self.begins or text.startswith(self.begins))
        return wanted and not (self.begins_not and text.startswith(self.begins_not))


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """Where a set is and how it is read."""

    name: str
    source: str
    """As `PromptSource.parse` reads it, without a slice."""
    about: str
    url: str
    category: str | None = None
    where: Where | None = None


@dataclass(frozen=True)
class NamedSpec:
    """A source string that begins with a set's name, taken apart."""

    named: NamedSet
    split: str | None
    """Another split than the set's own."""
    slice: str | None
    """Of the rows that belong to the set, such as `[:100]`."""
    column: str | None


def named_sets() -> Mapping[str, NamedSet]:
    """All sets that have a name."""
    return _shipped()


def find_named(spec: str) -> NamedSpec | None:
    """The set that `spec` names, or None. Whether a file has that name is for the caller to look at first."""
    found = _SPEC.fullmatch(spec)
    named = named_sets().get(found["name"]) if found else None
    return NamedSpec(named, found["split"] or None, found["slice"], found["column"]) if found and named else None


def file_part(spec: str) -> str:
    """What of `spec` would be a file's or folder's name, if there were one."""
    found = _SPEC.fullmatch(spec)
    return found["name"] if found else spec


def kept(rows: Sequence[Mapping[str, Any]], where: Where | None) -> Sequence[Mapping[str, Any]]:
    """The rows that belong to a set, in their order. `KeyError` where its column is missing."""
    return rows if where is None else [row for row in rows if where.keeps(row)]


@cache
def _shipped() -> Mapping[str, NamedSet]:
    text = (resources.files("iconoclast_tl.prompts") / "named_sets.toml").read_text(encoding="utf-8")
    return {name: _named_set(name, entry) for name, entry in tomllib.loads(text).items()}


def _named_set(name: str, entry: Mapping[str, Any]) -> NamedSet:
    where = entry.get("where")
    if where is not None:
        tests = {"is_": where.get("is", ()), **{key: where.get(key, ()) for key in ("begins", "begins_not")}}
        where = Where(where["column"], **{key: tuple(values) for key, values in tests.items()})
    return NamedSet(
        name=name,
        source=entry["source"],
        about=entry["about"],
        url=entry["url"],
        category=entry.get("category"),
        where=where,
    )
