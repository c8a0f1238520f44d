"""`--plugin`: a user's own estimator and detector on the command line, and folders that need one which is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, content
from tests.plugins import install, own_registries

QUICK = ["--compare", "none", "--resamples", 0]
PLUGIN = """
import iconoclast_tl as itl


@itl.estimator("mine")
def mine(target, neutral):
    return {sign} * (target.mean(0) - neutral.mean(0)) + target[0] / 2


@itl.detector("early")
def early(exchanges):
    return [any(letter in "{letters}" for letter in one.response) for one in exchanges]
"""

OTHERS = """
import iconoclast_tl as itl
from iconoclast_tl.scores.projection import Projection
from iconoclast_tl.search.by_tpe import by_tpe


@itl.score("twice")
class Twice(Projection):
    def __init__(self, inputs, rows):
        super().__init__(inputs.model, rows, inputs.direction)

    def read(self, asked, candidates=1):
        return 2 * super().read(asked, candidates)


@itl.score("flat")
class Flat(Twice):
    def read(self, asked, candidates=1):
        return super().read(asked, candidates)[0]


@itl.score("none")
def none(inputs, rows):
    return "nothing"


@itl.search_method("coarse")
def coarse(job):
    found = by_tpe(job)
    return job.found(found.candidates, {"tried": len(found.candidates)})


@itl.search_method("lost")
def lost(job):
    return []
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with own_registries():
        yield


def write(sign: int = 1, letters: str = "abcdefghijklm") -> None:
    Path("mine.py").write_text(PLUGIN.format(sign=sign, letters=letters))


def manifest(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "manifest.json").read_text())
    return found


def bare(cli: Cli, *arguments: object) -> Any:
    """A command of another process, which knows nothing of plugins that this one has loaded."""
    with own_registries():
        from iconoclast_tl.foundation.registry import registries

        for registry in registries():
            for name in registry.origins:
                del registry._parts[name], registry._origins[name]
        return cli(*arguments)


def test_an_estimator_of_a_file_works_with_it_and_not_without(cli: Cli, common: list[str]) -> None:
    write()
    asked = ["directions", *common, "--estimator", "mine", *QUICK, "--out", "run"]
    without = bare(cli, *asked)
    assert without.code == 2
    assert "there is no estimator 'mine' (directions.estimator, command line): want one of cones," in without.error
    assert "--plugin FILE_OR_MODULE" in without.error
    assert not Path("run").exists()
    done = cli(*asked, "--plugin", "mine.py", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["estimator"] == "mine"
    (record,) = manifest("run")["plugins"]
    assert (record["spec"], record["parts"]) == ("mine.py", ["detector early", "estimator mine"])
    assert "plugins" not in manifest_of_plain(cli, common)


def manifest_of_plain(cli: Cli, common: list[str]) -> dict[str, Any]:
    assert bare(cli, "collect", *common, "--out", "plain").code == 0
    return manifest("plain")


def test_a_continued_folder_names_the_plugin_that_is_missing(cli: Cli, common: list[str]) -> None:
    write()
    assert cli("directions", *common, "--estimator", "mine", *QUICK, "--out", "run", "--plugin", "mine.py").code == 0
    before = content(Path("run"))
    for command in (["preview"], ["directions"]):
        refused = bare(cli, *command, "--out", "run")
        assert refused.code == 2
        assert "was made with the estimator mine of a plugin that is not loaded" in refused.error
        assert refused.error.endswith("pass --plugin mine.py")
    assert content(Path("run")) == before
    assert cli("directions", "--out", "run", *QUICK, "--estimator", "mean", "--plugin", "mine.py").code == 0
    done = bare(cli, "directions", "--out", "run", *QUICK)  # the folder needs it no longer
    assert done.code == 0, done.err


def test_another_code_of_the_same_estimator_is_estimated_again(cli: Cli, common: list[str]) -> None:
    write()
    asked = ["directions", *common, "--estimator", "mine", *QUICK, "--out", "run", "--plugin", "mine.py"]
    assert cli(*asked).code == 0
    first = content(Path("run"))["directions.safetensors"]
    assert cli(*asked).code == 0
    assert content(Path("run"))["directions.safetensors"] == first
    write(sign=3)
    assert cli(*asked).code == 0
    assert content(Path("run"))["directions.safetensors"] != first


def test_a_detector_of_a_file_labels_and_labels_again_where_it_changed(
    cli: Cli, common: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    assert bare(cli, "evaluate", *common, "--detector", "early", "--out", "run").code == 2
    done = cli("evaluate", *common, "--detector", "early", "--out", "run", "--plugin", "mine.py", "--json")
    assert done.code == 0, done.err
    about = json.loads(done.out)["detectors"]["early"]["about"]
    assert (about["name"], about["module"]) == ("early", "iconoclast_tl_plugin_mine")
    write(letters="b")
    monkeypatch.setenv("ICONOCLAST_TL_PLUGINS", "mine.py")
    again = cli("evaluate", "--rescore", "--out", "run", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["detectors"]["early"]["about"]["digest"] != about["digest"]


def test_a_search_goes_by_it_and_refuses_to_go_on_by_another_code(cli: Cli, common: list[str]) -> None:
    write()
    some = ["--search", "tpe", "--set", "search.n_startup_trials=2", "--set", "evaluation.detector=early"]
    done = cli("search", *common, *some, "--trials", 2, "--out", "run", "--plugin", "mine.py")
    assert done.code == 0, done.err
    more = ["search", "--trials", 3, "--out", "run"]
    missing = bare(cli, *more)
    assert "was made with the detector early of a plugin that is not loaded" in missing.error
    assert cli(*more, "--plugin", "mine.py").code == 0
    write(letters="xyz")
    other = cli(*more, "--plugin", "mine.py")
    assert other.code == 2
    assert "the output folder holds a search by another early: got changed code in" in other.error


def test_an_installed_estimator_needs_no_option(
    cli: Cli, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def far(target, neutral):\n    return target.amax(0) - neutral.amax(0)\n"
    install(tmp_path / "site", "distant", code, "iconoclast_tl.estimators", far="distant:far", lost="distant:lost")
    monkeypatch.syspath_prepend(tmp_path / "site")
    from iconoclast_tl.directions.estimators.registry import ESTIMATORS

    monkeypatch.setattr(ESTIMATORS, "_entries", None)
    done = cli("directions", *common, "--estimator", "far", *QUICK, "--out", "run")
    assert done.code == 0, done.err
    (record,) = manifest("run")["plugins"]
    assert (record["distribution"], record["version"], record["parts"]) == ("distant", "1.2", ["estimator far"])
    lost = cli("directions", *common, "--estimator", "lost", *QUICK, "--out", "other")
    assert lost.code == 2
    assert "the estimator lost of distant 1.2 cannot be imported: got AttributeError" in lost.error


LETTERS = ["--set", 'evaluation.markers=["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"]']


def test_a_search_method_of_a_file_is_one_by_its_name(cli: Cli, common: list[str]) -> None:
    Path("others.py").write_text(OTHERS)
    some = ["search", *common, *LETTERS, "--set", "search.n_startup_trials=2", "--set", "search.n_trials=2"]
    asked = [*some, "--plugin", "others.py"]
    unknown = cli(*asked, "--search", "coarser", "--out", "run")
    assert "there is no search method 'coarser' (search.method, command line): want one of coarse," in unknown.error
    lost = cli(*asked, "--search", "lost", "--out", "lost")
    assert "the search method lost returns nothing found: got list; want what job.found" in lost.error
    done = cli(*asked, "--search", "coarse", "--out", "run", "--json")
    assert done.code == 0, done.err
    search = json.loads(done.out)["search"]
    assert (search["method"], search["goal"]) == ("coarse", "suppress")
    assert search["tried"] >= 1


def test_a_score_of_a_file_is_attributed(cli: Cli, common: list[str]) -> None:
    Path("others.py").write_text(OTHERS)
    asked = ["attribute", *common, "--method", "gradient", "--point", 1, "--out", "run", "--plugin", "others.py"]
    found = {}
    for name in ("projection", "twice"):
        done = cli(*asked, "--score", name, "--json")
        assert done.code == 0, done.err
        found[name] = json.loads(done.out)
        assert found[name]["score"] == name
    one, two = (found[name]["target"] for name in ("projection", "twice"))
    assert two == pytest.approx(2 * one, rel=1e-4)
    flat = cli(*asked, "--score", "flat")
    assert "the score flat returns another shape: got (" in flat.error
    none = cli(*asked, "--score", "none")
    assert "what makes the score none makes none: got str; want a scores.score.Score" in none.error
    assert "there is no score 'magic'" in cli(*asked, "--score", "magic").error


@pytest.mark.parametrize("command", ["directions", "doctor", "evaluate"])
def test_a_plugin_that_cannot_be_imported_is_one_line_of_any_command(cli: Cli, command: str) -> None:
    Path("bad.py").write_text("1 / 0")
    done = cli(command, "--plugin", "bad.py", "--out", "run")
    assert done.code == 2
    assert done.error.startswith("error: the plugin bad.py cannot be imported: got ZeroDivisionError")
    assert not Path("run").exists()


def test_no_recipe_names_a_plugin(cli: Cli, common: list[str]) -> None:
    write()
    Path("recipe.toml").write_text('plugins = ["mine.py"]\n')
    done = cli("config", "show", "--recipe", "recipe.toml")
    assert done.code == 2
    assert "unknown setting plugins" in done.error
