"""Parts that users bring: by decorator, file, module or entry point; and one line for whatever is wrong with one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.plugins import VARIABLE, load_plugins, named_in_environment, plugin_records
from iconoclast_tl.foundation.registry import Registry, UnknownPartError, source_digest
from tests.plugins import install, own_registries

GROUP = "iconoclast_tl.sauces"
FILE = """
from sauce_shelf import sauces

@sauces.register("{name}")
def sauce():
    return "{taste}"
"""


@pytest.fixture
def sauces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Any]]:
    """A registry that plugins find in the module `sauce_shelf`."""
    shelf = ModuleType("sauce_shelf")
    found = vars(shelf)["sauces"] = Registry[Any]("sauce", GROUP, {"plain": lambda: "plain"})
    monkeypatch.setitem(sys.modules, "sauce_shelf", shelf)
    with own_registries():
        yield found


def line(error: pytest.ExceptionInfo[UserError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    return said


def test_a_decorator_registers_and_gives_back_what_it_decorates(sauces: Registry[Any]) -> None:
    @sauces.register("mint")
    def mint() -> str:
        return "mint"

    assert mint() == "mint"
    assert sauces["mint"] is mint
    assert list(sauces) == ["plain", "mint"]
    assert (len(sauces), "mint" in sauces, "dill" in sauces) == (2, True, False)
    with pytest.raises(UserError, match="there is no sauce 'dill': want one of mint, plain; pass the plugin"):
        sauces.require("dill")
    with pytest.raises(KeyError):
        sauces["dill"]


def test_names_that_are_taken_are_refused(sauces: Registry[Any]) -> None:
    def mint() -> str:
        return "mint"

    with pytest.raises(UserError, match="the sauce name 'plain' is taken: got one by this package; choose another"):
        sauces.register("plain")(mint)
    sauces.register("mint")(mint)
    with pytest.raises(UserError, match=r"the sauce name 'mint' is taken: got one by tests\.foundation"):
        sauces.register("mint")(lambda: "other")
    sauces.register("mint")(mint)  # a cell that is run twice
    assert sauces["mint"] is mint


@pytest.mark.parametrize("name", ["", "two words", "a,b", "a:b", "-a"])
def test_what_is_no_name_is_refused(sauces: Registry[Any], name: str) -> None:
    with pytest.raises(UserError, match="is no name of a sauce"):
        sauces.register(name)(len)


def test_a_file_is_imported_once_and_again_where_it_changed(sauces: Registry[Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(name="mine", taste="sour"))
    load_plugins([str(file)])
    first = sauces["mine"]
    assert first() == "sour"
    load_plugins([str(file)])
    assert sauces["mine"] is first
    file.write_text(FILE.format(name="mine", taste="sweet"))
    before = source_digest(first)
    load_plugins([str(file)])
    assert sauces["mine"]() == "sweet"
    (record,) = [one for one in plugin_records() if "sauce mine" in one["parts"]]
    assert (record["spec"], record["distribution"]) == (str(file), None)
    assert record["digest"] == source_digest(sauces["mine"])
    file.write_text(FILE.format(name="mine", taste="salty"))
    assert source_digest(first) != before


def test_two_files_of_one_name_are_refused(sauces: Registry[Any], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(FILE.format(name=folder, taste="sour"))
    load_plugins([str(tmp_path / "a/mine.py")])
    with pytest.raises(UserError, match=r"two plugins are called mine\.py"):
        load_plugins([str(tmp_path / "b/mine.py")])


def test_a_module_is_imported_by_its_name(
    sauces: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sauce_pack").mkdir()
    (tmp_path / "sauce_pack/__init__.py").write_text("")
    (tmp_path / "sauce_pack/hot.py").write_text(FILE.format(name="hot", taste="hot"))
    with pytest.raises(UserError, match=r"there is no plugin sauce_pack\.hot"):
        load_plugins(["sauce_pack.hot"])
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["sauce_pack.hot"])
    assert sauces["hot"]() == "hot"
    (record,) = [one for one in plugin_records() if "sauce hot" in one["parts"]]
    assert record["module"] == record["spec"] == "sauce_pack.hot"


BROKEN = {
    "import no_such_module_at_all": "ModuleNotFoundError: No module named 'no_such_module_at_all' .mine.py, line 1",
    "x = 1\nraise ValueError('no\\nway')": "ValueError: no way .mine.py, line 2",
    "import json\n\njson.loads('[')": r"JSONDecodeError: .* .mine.py, line 3",
    "def f(:": "SyntaxError",
    "import sys; sys.exit(3)": "SystemExit: 3",
    "x = 1": "registers nothing: want a decorator",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_file_is_one_line_and_leaves_no_module(sauces: Registry[Any], tmp_path: Path, code: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(UserError, match=BROKEN[code]) as error:
        load_plugins([str(file)])
    assert f"the plugin {file}" in line(error)
    assert "iconoclast_tl_plugin_mine" not in sys.modules or "nothing" in line(error)


def test_a_module_with_a_missing_import_is_not_said_to_be_missing_itself(
    sauces: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sauce_needy.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="the plugin sauce_needy cannot be imported: got ModuleNotFoundError"):
        load_plugins(["sauce_needy"])


@pytest.mark.parametrize("spec", ["nowhere.py", "no/where", "sauce.txt.py", "has space", "1.2"])
def test_a_plugin_that_is_not_there_is_told(sauces: Registry[Any], spec: str) -> None:
    with pytest.raises(UserError, match=r"plugin .*want the path of a \.py file, or the dotted name"):
        load_plugins([spec])


def test_an_entry_point_is_known_by_name_and_imported_when_it_is_asked_for(
    sauces: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "saucery", "def tart():\n    return 'tart'\n", GROUP, tart="saucery:tart")
    assert "tart" not in Registry[Any]("sauce", GROUP, {})
    monkeypatch.syspath_prepend(tmp_path)
    assert list(sauces) == ["plain", "tart"]
    assert "saucery" not in sys.modules
    assert sauces.require("tart")() == "tart"
    assert "saucery" in sys.modules
    (record,) = [one for one in plugin_records() if "sauce tart" in one["parts"]]
    assert (record["distribution"], record["version"], record["spec"]) == ("saucery", "1.2", None)
    del sys.modules["saucery"]


def test_a_broken_entry_point_names_its_distribution_and_is_in_nobody_elses_way(
    sauces: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "sourmilk", "raise RuntimeError('gone off')", GROUP, sour="sourmilk:sour", odd="sourmilk:odd")
    monkeypatch.syspath_prepend(tmp_path)
    assert sauces.require("plain")() == "plain"
    with pytest.raises(UserError, match=r"the sauce sour of sourmilk 1\.2 cannot be imported: got Runt") as error:
        sauces.require("sour")
    assert "gone off (sourmilk.py, line 1)" in line(error)
    with pytest.raises(UnknownPartError, match="want one of odd, plain, sour"):
        sauces.require("sweet")


def test_entry_points_are_made_parts_by_the_registry_and_may_not_take_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "dairy", "cream = 3\nplain = 4\n", GROUP, cream="dairy:cream")
    monkeypatch.syspath_prepend(tmp_path)
    doubled = Registry[int]("sauce", GROUP, {}, adapt=lambda name, found: 2 * found)
    assert doubled["cream"] == 6
    install(tmp_path, "creamery", "cream = 5\n", GROUP, cream="creamery:cream")
    with pytest.raises(UserError, match=r"the sauce name 'cream' is taken: got one by .* and one by .*1\.2; uninstall"):
        Registry[int]("sauce", GROUP, {}).require("cream")
    with pytest.raises(UserError, match=r"'cream' is taken: got one by this package and one by"):
        Registry[int]("sauce", GROUP, {"cream": 1}).require("milk")
    sys.modules.pop("dairy", None)


def test_the_environment_names_plugins_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert named_in_environment() == []
    monkeypatch.setenv(VARIABLE, " a.py, b.c ,")
    assert named_in_environment() == ["a.py", "b.c"]
