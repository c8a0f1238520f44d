"""What tests of plugins share: registries as they were before, and distributions that are installed into a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iconoclast_tl.foundation import plugins
from iconoclast_tl.foundation.registry import registries


@contextmanager
def own_registries() -> Iterator[None]:
    """What is registered or imported inside is gone afterwards."""
    before = {id(one): (dict(one._parts), dict(one._origins), one._entries) for one in registries()}
    modules, loaded = set(sys.modules), dict(plugins._LOADED)
    try:
        yield
    finally:
        for one in registries():  # also those that were imported inside
            built_in = {name: part for name, part in one._parts.items() if name not in one._origins}
            one._parts, one._origins, one._entries = before.get(id(one), (built_in, {}, None))
        for name in set(sys.modules) - modules:
            if name.startswith(plugins._FILES):
                del sys.modules[name]
        plugins._LOADED.clear()
        plugins._LOADED.update(loaded)


def install(folder: Path, name: str, code: str, group: str, **entries: str) -> Path:
    """A distribution of one module: `NAME.py` and its metadata, as an installer leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    about = folder / f"{name}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (about / "top_level.txt").write_text(f"{name}\n")
    lines = [f"[{group}]", *(f"{part} = {value}" for part, value in entries.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
