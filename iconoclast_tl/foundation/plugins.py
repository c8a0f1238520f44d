"""Plugins: modules and files of the user's whose import registers parts (`foundation.registry`).

They are code, and run with all rights of whoever starts the command: so they are named on the command line or in the
environment variable ICONOCLAST_TL_PLUGINS, and never by a recipe or a run folder, which one may have from others.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.registry import described, loading, registries

VARIABLE: Final = "ICONOCLAST_TL_PLUGINS"
WANT: Final = "the path of a .py file, or the dotted name of an installed module"
_FILES: Final = "iconoclast_tl_plugin_"
"""What the modules of plugin files are called, before the name of the file."""
_LOADED: Final[dict[str, str]] = {}
"""Module → how the user named it."""


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """What a manifest says of a plugin; of one from Python, `spec` is None."""

    spec: str | None
    """As it was named on the command line."""
    module: str
    distribution: str | None
    version: str | None
    digest: str | None
    """SHA-256 of its file."""
    parts: tuple[str, ...]
    """What it registered, such as `estimator mine`."""


def named_in_environment() -> list[str]:
    """The plugins of ICONOCLAST_TL_PLUGINS, which are separated by commas."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def load_plugins(specs: Iterable[str]) -> None:
    """Import modules by dotted name, and .py files by path, so that their decorators run; each once.

    Raises `UserError` for one that is not there, whose import raises an error, or that registers nothing.
    """
    for spec in specs:
        if spec.endswith(".py") or os.sep in spec or "/" in spec:
            _load_file(spec)
        else:
            _load_module(spec)


def plugin_records() -> list[dict[str, Any]]:
    """What registered parts in this process, as JSON, by module."""
    parts: dict[str, list[str]] = {}
    for registry in registries():
        for name, origin in registry.origins.items():
            parts.setdefault(origin.plugin or origin.module, []).append(f"{registry.kind} {name}")
    return [asdict(_record(module, sorted(names))) for module, names in sorted(parts.items())]


def _record(module: str, names: list[str]) -> PluginRecord:
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    top = module.partition(".")[0]
    distribution = None if module.startswith(_FILES) else next(iter(packages_distributions().get(top, [])), None)
    number = None
    if distribution is not None:
        try:
            number = version(distribution)
        except PackageNotFoundError:
            distribution = None
    file = getattr(sys.modules.get(module), "__file__", None)
    return PluginRecord(
        spec=_LOADED.get(module),
        module=module,
        distribution=distribution,
        version=number,
        digest=_digest(Path(file)) if file and Path(file).is_file() else None,
        parts=tuple(names),
    )


def _load_module(spec: str) -> None:
    if not all(part.isidentifier() for part in spec.split(".")):
        raise UserError(f"the plugin {spec!r} is no module", want=WANT)
    if spec not in sys.modules:
        before = _count()
        with loading(spec):
            _import(spec)
        _require_more(before, spec)
    _LOADED[spec] = spec


def _import(spec: str) -> None:
    try:
        importlib.import_module(spec)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{spec}.".startswith(f"{missing}."):  # it is there, and its own code fails
            raise _broken(spec, error) from error
        mend = "install it where this tool is installed, or pass its path"
        raise UserError(f"there is no plugin {spec}", want=WANT, mend=mend) from error


def _load_file(spec: str) -> None:
    path = Path(spec).expanduser()
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"there is no plugin {spec}", got=None if not path.exists() else "no .py file", want=WANT)
    name = _FILES + path.stem
    there = sys.modules.get(name)
    if there is not None and Path(str(there.__file__)) != path.resolve():
        raise UserError(f"two plugins are called {path.name}", got=f"{there.__file__} and {spec}", mend="rename one")
    if there is not None and getattr(there, "__digest__", None) == _digest(path):
        return
    found = importlib.util.spec_from_file_location(name, path.resolve())
    assert found is not None  # the suffix is a module's
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    vars(module)["__digest__"] = _digest(path)
    before = _count()
    sys.modules[name] = module
    try:
        with loading(name):
            found.loader.exec_module(module)
    except BaseException as error:
        _forget(name, there)
        if isinstance(error, UserError) or not isinstance(error, Exception | SystemExit):
            raise
        raise _broken(spec, error) from error
    _LOADED[name] = spec
    if there is None:
        _require_more(before, spec)


def _forget(name: str, before: ModuleType | None) -> None:
    if before is None:
        del sys.modules[name]
    else:
        sys.modules[name] = before


def _count() -> int:
    return sum(len(registry.origins) for registry in registries())


def _require_more(before: int, spec: str) -> None:
    if _count() == before:
        raise UserError(
            f"the plugin {spec} registers nothing",
            want='a decorator such as @itl.estimator("mine") in it',
        )


def _broken(spec: str, error: BaseException) -> UserError:
    return UserError(f"the plugin {spec} cannot be imported", got=described(error), mend="mend it, or leave it out")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
