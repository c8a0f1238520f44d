"""results.json: published whole and once; interrupted anywhere, a resumed run ends with the same one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import write_json
from iconoclast_tl.stages import results as results_module
from iconoclast_tl.stages.comparison import read_run
from iconoclast_tl.stages.results import OF_AN_EVALUATION, Results, publish, published, withdraw
from iconoclast_tl.stages.run_folder import SCHEMA, RunFolder
from tests.run_folders import write_run
from tests.stages.test_side_effects import Open, evaluated, opened

__all__ = ["opened"]
COMPLETE: dict[str, Any] = {
    **dict.fromkeys(OF_AN_EVALUATION), "evaluated": {"edit": "e"}, "detector": "markers", "detectors": {},
    "base": {"behaviour_rate": None, "by_category": {}}, "agreement": [], "budget": 8, "model": "m", "behaviour": "b",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "opened" not in request.fixturenames:
        monkeypatch.setattr(results_module, "evaluation_page", lambda results: "a page")


def test_what_is_published_is_the_state_by_the_schema(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record(**COMPLETE, scratch="of a stage alone")
    found = publish(folder)
    assert found == published(folder)
    assert "scratch" not in found
    assert found.keys() <= Results.__annotations__.keys()
    assert next(iter(found)) == "schema"


def test_publishing_twice_writes_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record(**COMPLETE)
    publish(folder)
    before = [file.stat().st_ino for file in (folder.results, folder.evaluation_page)]
    publish(folder)
    assert [file.stat().st_ino for file in (folder.results, folder.evaluation_page)] == before
    folder.record(budget=9)
    publish(folder)
    after = [file.stat().st_ino for file in (folder.results, folder.evaluation_page)]
    assert all(one != other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("lacking", ["evaluated", "detector"])
def test_what_is_not_complete_is_not_published(tmp_path: Path, lacking: str) -> None:
    folder = RunFolder(tmp_path)
    folder.record(**COMPLETE) and folder.record(**{lacking: None})
    with pytest.raises(UserError, match="holds no complete evaluation"):
        publish(folder)
    assert not folder.results.exists()


def test_what_is_withdrawn_is_not_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record(**COMPLETE)
    publish(folder)
    withdraw(folder)
    with pytest.raises(UserError, match=r"was not evaluated: `iconoclast-tl evaluate --out .*` first"):
        published(folder)
    assert not folder.evaluation_page.exists()


def test_a_comparison_reads_what_is_published_and_not_the_state(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", edited=[False] * 4)
    write_json(run / "state.json", {"budget": 1})
    assert read_run(run).budget == json.loads((run / "results.json").read_text())["budget"] > 1
    (run / "results.json").rename(run / "state.json")
    with pytest.raises(UserError, match="was not evaluated"):
        read_run(run)


@pytest.mark.parametrize(("file", "said"), [
    ("manifest.json", rf"holds a run of another version of iconoclast-tl: got schema 1; want schema {SCHEMA}"),
    ("results.json", r"results.json was written by another version: got schema 0; want schema 1"),
])  # fmt: skip
def test_a_folder_of_another_version_is_told_in_a_line(tmp_path: Path, file: str, said: str) -> None:
    run = write_run(tmp_path / "run", edited=[False] * 4)
    assert read_run(run)
    content = json.loads((run / file).read_text())
    write_json(run / file, {**content, "schema": content["schema"] - 1})
    with pytest.raises(UserError, match=said) as error:
        read_run(run)
    assert "\n" not in str(error.value)


def test_a_manifest_of_something_else_is_told_in_a_line(tmp_path: Path) -> None:
    for content in ({"name": "a web app"}, ["a", "list"], {"schema": SCHEMA}):
        write_json(tmp_path / "manifest.json", content)
        with pytest.raises(UserError, match="is not the manifest of a run"):
            RunFolder(tmp_path).read_manifest()


class Killed(KeyboardInterrupt):
    """Stands for the end of the process."""


def test_interrupted_before_any_write_a_resumed_evaluation_ends_with_the_same_results(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the n-th change of the state, of the transcript or of the results, for every n."""

    def timeless(results: dict[str, Any]) -> dict[str, Any]:
        return {**results, "timing": None, "token_passes": None}

    with opened(budgets=[2], detectors=["markers:arditi"]) as workspace:
        folder = workspace.folder
        whole = timeless(evaluated(workspace))
        for n in range(100):
            for file in (folder.state, folder.results, folder.evaluation_page, folder.responses):
                file.unlink(missing_ok=True)
            with monkeypatch.context() as patch:
                _kill_at(patch, n)
                try:
                    evaluated(workspace)
                except Killed:
                    assert not folder.results.exists()  # it is the last that is written
                else:
                    break
            assert timeless(evaluated(workspace)) == whole
            assert timeless(published(folder)) == whole
    assert n > 8


def _kill_at(patch: pytest.MonkeyPatch, n: int) -> None:
    from iconoclast_tl.stages import evaluation as evaluation_stage
    from iconoclast_tl.stages import scoring as scoring_stage

    count = iter(range(n + 1))

    def killing(honest: Callable[..., Any]) -> Callable[..., Any]:
        def write(*given: Any, **more: Any) -> Any:
            if next(count) == n:
                raise Killed
            return honest(*given, **more)

        return write

    patch.setattr(RunFolder, "record", killing(RunFolder.record))
    patch.setattr(results_module, "write_json", killing(results_module.write_json))
    for module in (evaluation_stage, scoring_stage):
        patch.setattr(module, "write_transcript", killing(module.write_transcript))
