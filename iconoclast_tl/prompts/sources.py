"""Prompt sources: a file, a `save_to_disk` folder, a dataset on the hub, or a set by name, all in one string.

    prompts.txt                          a prompt a line
    prompts.jsonl#question               also .json, .csv, .parquet; the column after '#'
    saved_dataset@train[:400]#text       a folder written by `Dataset.save_to_disk`
    owner/name:config@train[:400]#text   a dataset on the hub
    xstest[:100]                         a set of `named_sets.toml`; a file or folder of that name wins

Slices (`[:400]`, `[10%:20%]`) mean what they mean in the datasets library, for files too. Without a column, `prompt`,
`text`, `instruction` or the only column is taken. A column `system` holds a prompt's own system message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.prompts.named import NamedSpec, file_part, find_named, kept, named_sets
from iconoclast_tl.prompts.prompt import Prompt

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".json", ".jsonl", ".csv", ".parquet")
USUAL_COLUMNS = ("prompt", "text", "instruction")


@dataclass(frozen=True)
class PromptSource:
    """The parts of a source string: `name[:config][@split][#column]`."""

    spec: str
    name: str
    config: str | None
    split: str | None
    column: str | None

    @classmethod
    def parse(cls, spec: str) -> PromptSource:
        """Take a source string apart; an existing path wins over the hub's syntax."""
        name, column = (spec, None) if Path(spec).exists() else _rpartition(spec, "#")
        name, split = (name, None) if Path(name).exists() else _rpartition(name, "@")
        config = None
        if not Path(name).exists() and ":" in name:
            name, config = _rpartition(name, ":")
        if not name:
            raise UserError("a prompt source has no name", got=repr(spec), want="FILE, FOLDER or owner/name@split")
        return cls(spec, name, config, split, column)


def load_prompts(spec: str, category_column: str | None = None) -> list[Prompt]:
    """Load the prompts that `spec` names, stripped, empty ones left out, in the source's order.

    A named set that has no `category_column` brings the categories of its own. Raises `UserError` for a missing or
    empty source, a missing column, or text that is not UTF-8.
    """
    named = None if Path(spec).exists() or Path(file_part(spec)).exists() else find_named(spec)
    prompts = _load_plain(spec, category_column) if named is None else _load_named(spec, named, category_column)
    prompts = [prompt for prompt in prompts if prompt.text]
    if not prompts:
        raise UserError(f"prompt source {spec} is empty", got="0 prompts", want="at least one a line or row")
    return prompts


def _load_plain(spec: str, category_column: str | None) -> list[Prompt]:
    source = PromptSource.parse(spec)
    path = Path(source.name)
    if path.suffix == ".txt":
        if source.column is not None:
            raise UserError(f"{source.name} has no columns", got=f"#{source.column}", want="a prompt a line, no column")
        if category_column is not None:
            raise UserError(
                f"{source.name} has no columns", got=f"category {category_column!r}", want="a table, such as .jsonl"
            )
        return [Prompt(line) for line in _sliced(_read_lines(path), source)]
    return _prompts_of(load_table(source), source, category_column)


def _load_named(spec: str, found: NamedSpec, category_column: str | None) -> list[Prompt]:
    """Its rows first, then the slice: `xstest[:50]` is fifty prompts of the set, not what is left of fifty rows."""
    named, source = found.named, PromptSource.parse(found.named.source)
    source = replace(
        source,
        spec=f"{spec} ({named.source})",
        split=found.split or source.split,
        column=found.column or source.column,
    )
    rows = load_table(source)
    columns = list(rows[0]) if rows else []
    if rows and named.where is not None and named.where.column not in columns:
        raise UserError(f"{source.spec} has no column {named.where.column!r}", want=f"one of {', '.join(columns)}")
    rows = _cut(kept(rows, named.where), "train", found.slice, source.spec)
    return _prompts_of(rows, source, category_column if category_column in columns else named.category)


def load_table(source: PromptSource) -> Sequence[Mapping[str, Any]]:
    """The rows of a source that has columns, as they stand; `UserError` where it cannot be read."""
    path = Path(source.name)
    return _read_table(path, source) if path.suffix in TABLES else _read_dataset(path, source)


def _rpartition(spec: str, separator: str) -> tuple[str, str | None]:
    head, found, tail = spec.rpartition(separator)
    return (head, tail) if found else (spec, None)


def _read_lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): U+2028 or a form feed inside a prompt ends no line. utf-8-sig: with or without a mark.
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _read_table(path: Path, source: PromptSource) -> Sequence[Mapping[str, Any]]:
    import pandas as pd

    try:
        if path.suffix == ".csv":
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        elif path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = _read_json_table(path)
    except (OSError, ValueError) as error:  # UnicodeDecodeError and pandas' parser errors are ValueErrors
        raise _unreadable(path, error) from error
    rows = [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]
    return _sliced(rows, source)


def _read_json_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    lines = path.suffix == ".jsonl"
    with path.open(encoding="utf-8-sig") as file:
        return pd.read_json(file, lines=lines, dtype=False, convert_dates=False, convert_axes=False)


def _read_dataset(path: Path, source: PromptSource) -> Sequence[Mapping[str, Any]]:
    import datasets

    if path.is_dir():
        try:
            loaded = datasets.load_from_disk(str(path))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a folder of prompts", got=error, want="one written by Dataset.save_to_disk"
            ) from error
        if isinstance(loaded, datasets.DatasetDict):
            name = _split_name(source) or "train"
            if name not in loaded:
                raise UserError(f"{path} has no split {name!r}", want=", ".join(loaded), mend="write it after an @")
            loaded = loaded[name]
        return _sliced(list(loaded), source)
    is_hub_id = source.split is not None and source.name.count("/") == 1  # owner/name-2.5: a dot is no suffix
    if source.name.startswith((".", "/", "~")) or source.name.count("/") > 1 or (path.suffix and not is_hub_id):
        raise UserError(f"there is no prompt file {source.name}", want="an existing file, folder or hub id")
    if source.split is None:
        raise UserError(
            f"{source.spec} names no file here, and no split of a hub dataset",
            want=f"an existing file, owner/name@split{_or_a_name(source)}",
            mend=f"for example {source.name}@train[:400]" if "/" in source.name else None,
        )
    try:
        return list(datasets.load_dataset(source.name, source.config, split=source.split))
    except Exception as error:  # the hub client raises a dozen kinds; each means that this source cannot be had
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the hub dataset {source.spec}",
            got=first_line,
            want=f"owner/name[:config]@split[#column]{_or_a_name(source)}",
        ) from error


def _or_a_name(source: PromptSource) -> str:
    return "" if "/" in source.name else f", or one of {', '.join(named_sets())}"


def _split_name(source: PromptSource) -> str | None:
    return re.split(r"\[", source.split)[0] if source.split else None


def _sliced(rows: Sequence[Any], source: PromptSource) -> Sequence[Any]:
    """Apply the `[a:b]` of the source's split to rows that are already here, with the meaning of `datasets`."""
    name = _split_name(source)
    if name not in (None, "", "train") and Path(source.name).is_file():
        raise UserError(f"a file has no split {name!r}", got=source.spec, want="train, with or without a slice")
    if source.split is None or "[" not in source.split:
        return rows
    return _cut(rows, name or "train", source.split[source.split.index("[") :], source.spec)


def _cut(rows: Sequence[Any], name: str, slice_: str | None, spec: str) -> Sequence[Any]:
    if slice_ is None:
        return rows
    import datasets

    try:
        read = datasets.ReadInstruction.from_spec(name + slice_)
        (absolute,) = read.to_absolute({name: len(rows)})
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"the slice of {spec} does not parse", got=slice_, want="a slice such as train[:400]"
        ) from error
    return rows[absolute.from_ : absolute.to]


def _prompts_of(rows: Sequence[Mapping[str, Any]], source: PromptSource, category_column: str | None) -> list[Prompt]:
    columns = list(rows[0]) if rows else []
    if not columns:
        return []
    column = source.column or next((name for name in USUAL_COLUMNS if name in columns), columns[0])
    if source.column is None and column not in USUAL_COLUMNS and len(columns) > 1:
        raise UserError(
            f"{source.spec} does not say which column holds the prompts",
            got=", ".join(columns),
            mend=f"write it after a #, for example {source.spec}#{columns[0]}",
        )
    for name in (column, category_column):
        if name is not None and name not in columns:
            raise UserError(f"{source.spec} has no column {name!r}", want=f"one of {', '.join(columns)}")
    return [
        Prompt(
            text=(_text(row[column], source.spec) or "").strip(),
            system=_text(row.get("system"), source.spec),
            category=_text(row.get(category_column), source.spec) if category_column else None,
        )
        for row in rows
    ]


def _text(value: Any, spec: str) -> str | None:
    """Text of a cell; None for what tables use as 'nothing here' (None, NaN, the empty string)."""
    if not (value is None or isinstance(value, str | bool | int | float)):
        raise UserError(
            f"{spec} holds something other than text",
            got=repr(value)[:80],
            want="a column with one prompt a row",
        )
    return None if value is None or value == "" or value != value else str(value)


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no prompt file {path}", want="an existing file, folder or hub id")
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(f"cannot read the prompts in {path}", got=first_line, want="UTF-8 text of that format")
