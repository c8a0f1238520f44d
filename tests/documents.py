"""The documents as the tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import iconoclast_tl as itl
from iconoclast_tl.organisms.prompts import organism_prompts
from iconoclast_tl.prompts.contrast import SPLITS, ContrastSet

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if not {"_build", "_generated"} & set(path.parts))


def python_of(page: Path) -> str:
    """All blocks of a page that are marked `python`, one after the other; those marked `py` are not run."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))


RUNNABLE = [page for page in PAGES if python_of(page)]


def few_prompts() -> ContrastSet:
    """The organism's prompts, few enough for a test: 16 + 16 to train on, 12 a side of the other splits."""
    data = organism_prompts()
    sizes = {"train": 16, "val": 12, "test": 12}
    parts = {name: data.of(name) for name in SPLITS}
    cut = {
        name: replace(part, target=part.target[: sizes[name]], neutral=part.neutral[: sizes[name]])
        for name, part in parts.items()
    }
    cut["test"] = replace(cut["test"], borderline=parts["test"].borderline[: sizes["test"]])
    return replace(data, train=cut["train"], val=cut["val"], test=cut["test"])


def run_python_of(page: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Run a page's Python in `folder`, with few prompts."""
    data = few_prompts()
    monkeypatch.setattr(itl, "organism_prompts", lambda: data)
    monkeypatch.chdir(folder)
    exec(compile(python_of(page), page.name, "exec"), {"__name__": "page"})


def require_described(results: Mapping[str, Any]) -> None:
    """Every key of results.json has a row that covers it, and nothing that is described is of another shape."""
    text = (ROOT / "docs" / "reference" / "results_json.md").read_text(encoding="utf-8")
    named = [key for row in re.findall(r"^\| (`.*?) \|", text, re.M) for key in re.findall(r"`([^`]+)`", row)]
    named += [key.replace("base.", "edited.", 1) for key in named if key.startswith("base.")]
    patterns = [re.compile(re.escape(key).replace(r"\*", ".+") + r"(\..+)?") for key in named]
    missing = [key for key in keys_of(results) if not any(pattern.fullmatch(key) for pattern in patterns)]
    assert not missing
    assert named


def keys_of(found: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the leaves, `[]` for the items of a list."""
    if isinstance(found, Mapping) and found:
        for name, value in found.items():
            yield from keys_of(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(found, list) and any(isinstance(one, Mapping) for one in found):
        for value in filter(None, found):
            yield from keys_of(value, f"{prefix}[]")
    else:
        yield prefix
