"""Every public name is what it says, whatever has been imported, and costs nothing until it is used."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import iconoclast_tl as itl
from iconoclast_tl.foundation.errors import UserError

HEAVY = ("torch", "transformers", "transformer_lens", "peft", "datasets", "optuna", "pydantic")


def submodules() -> list[str]:
    """All modules of the package, by their dotted names."""
    return [module.name for module in pkgutil.walk_packages(itl.__path__, "iconoclast_tl.")]


def is_what_it_says(name: str) -> bool:
    """Whether a public name is a class or a function of that name in the module that defines it, and no module."""
    it = getattr(itl, name)
    home = getattr(it, "__module__", "")
    if isinstance(it, ModuleType) or not home.startswith("iconoclast_tl."):
        return False
    return it.__name__ == name and getattr(import_module(home), name) is it


def wrong() -> list[str]:
    """Public names that are something else."""
    return [name for name in itl.__all__ if not is_what_it_says(name)]


def test_every_public_name_is_itself_after_all_modules_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = submodules()
    for module in modules:
        import_module(module)
    assert len(modules) > 150
    assert wrong() == []
    # The control: what importing a subpackage of that name would do.
    monkeypatch.setattr(itl, "collect", import_module("iconoclast_tl.activations.collect"), raising=False)
    assert wrong() == ["collect"]


def test_no_public_name_is_also_a_room() -> None:
    """Importing a room sets its name on the package: whoever comes last would win."""
    rooms = {module.name for module in pkgutil.iter_modules(itl.__path__)}
    assert len(rooms) > 10
    assert not rooms & set(itl.__all__)


def test_names_are_listed_and_others_are_no_names() -> None:
    assert itl.__all__ == sorted(set(itl.__all__))
    assert set(itl.__all__) <= set(dir(itl))
    with pytest.raises(AttributeError, match="no_such_name"):
        itl.no_such_name  # noqa: B018
    assert issubclass(itl.UserError, ValueError)
    assert itl.UserError is UserError


def test_type_checkers_see_the_names_that_are_there() -> None:
    """What stands under TYPE_CHECKING is what `__all__` has."""
    tree = ast.parse(Path(itl.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname or alias.name for node in imports for alias in node.names}
    assert seen - {"Any"} == set(itl.__all__)


def test_importing_the_package_loads_no_library() -> None:
    """In an interpreter of its own; the control: what a name brings in when it is used."""
    code = (
        "import sys, iconoclast_tl as itl\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])\n"
        "itl.load_model\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.split("\n")[:2]
    assert before == ""
    assert "torch" in after
