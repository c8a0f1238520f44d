"""Every stage alone, on a tiny random model: what it reads, what it writes, and what it does not do twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.execution.batch_size import Fit
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.twin import Parity
from iconoclast_tl.search import job as job_module
from iconoclast_tl.search.objective import Objective
from iconoclast_tl.search.pareto import Candidate
from iconoclast_tl.stages import fold as fold_stage
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.edits import chosen_edit
from iconoclast_tl.stages.evaluation import evaluated, evaluated_model
from iconoclast_tl.stages.fold import folded, merged
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.pipeline import run_all
from iconoclast_tl.stages.results import OF_AN_EVALUATION, published
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.search import searched
from iconoclast_tl.stages.settings import merge, parse_assignments
from iconoclast_tl.stages.workspace import Workspace
from tests.edits.edits import scaled

COMMON = [
    "search.method=tpe",
    "search.n_trials=4",
    "search.n_startup_trials=2",
    "evaluation.max_new_tokens=6",
    "evaluation.kl_tokens=4",
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Targets start with w1, neutrals with w2."""
    place = tmp_path_factory.mktemp("prompts")
    for name, first in (("target", "w1"), ("neutral", "w2")):
        lines = [f"{first} w{3 + i % 9} w{12 + i % 7} w{20 + i}" for i in range(15)]
        (place / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: str(place / f"{name}.txt") for name in ("target", "neutral")}


@pytest.fixture
def options(llama_folder: Path, prompts: dict[str, str]) -> dict[str, Any]:
    named = {"model": {"name": str(llama_folder)}, "prompts": prompts, "evaluation": {"markers": ["w3", "w4", "w5"]}}
    return merge(parse_assignments(COMMON), named)


@contextmanager
def opened(options: dict[str, Any], out: Path, *changes: str) -> Iterator[Workspace]:
    with open_workspace(merge(options, parse_assignments(changes)), None, out) as workspace:
        yield workspace


def search_all(workspace: Workspace) -> Any:
    activations = collected(workspace)
    return searched(workspace, estimated(workspace, activations), activations)


@pytest.mark.parametrize(
    "changes",
    [
        ("search.preset=heretic",),
        ("search.preset=iconoclast", "directions.benign_rank=2", "fold.merge=true"),
        ("edit.affine=true", "edit.row_normalization=none", "fold.merge=true", "directions.benign_rank=0"),
        ("search.method=outer", "search.outer.rounds=1", "search.gradient.prices=[0.01, 0.001, 2]"),
    ],
)
def test_a_whole_run_writes_results_that_say_what_was_done(
    options: dict[str, Any], tmp_path: Path, changes: tuple[str, ...]
) -> None:
    with opened(options, tmp_path / "run", *changes) as workspace:
        results = run_all(workspace)
    assert results["fidelity"]["ok"]
    assert (results["fidelity"]["preview_vs_merged"] is not None) == ("fold.merge=true" in changes)
    assert results["base"]["behaviour_rate"]["n"] == 3
    assert results["splits"]["train"] == {"target": 9, "neutral": 9}
    assert results["chosen"]["rule"] == "interval"
    assert all((row["train"] is None) == ("search.method=outer" not in changes) for row in results["pareto"])
    assert "answered_rate" not in results["base"]  # only an organism's truth is known
    assert not [m for m in workspace.model.hf.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_a_run_keeps_the_batch_size_that_was_measured_for_it(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def measured(model: Any, length: int, kept: int, track: Any) -> Fit:
        asked.append((length, kept))
        return Fit(4, 2e6, 10**8)

    monkeypatch.setattr("iconoclast_tl.stages.batch_room.fitting", measured)
    for _ in range(2):
        with opened(options, tmp_path / "run") as workspace:
            collected(workspace)
            assert workspace.val.config.batch_rows == 4
            assert workspace.rows_at_once(7) == 7
    longest = max(len(row) for row in workspace.val.suite["target"].rows)
    assert asked == [(longest + 6, 4)]
    said: list[str] = []
    with open_workspace(options, None, tmp_path / "other", say=said.append) as workspace:
        assert workspace.rows_at_once("auto") == 4
    assert "batches of 4: a row takes 2 MB, 0.1 GB are free" in said


def test_a_merge_is_of_the_model_that_was_searched(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(options["model"]["name"], folder)
    options = merge(options, {"model": {"name": str(folder)}})
    with opened(options, tmp_path / "run") as workspace:
        search_all(workspace)
        run, settings = workspace.folder, workspace.settings
    (run.path / ".merged.0123abcd").mkdir()  # of a merge that was killed
    done = merged(run, settings)
    assert run.read_state()["merged"] == {"edit": done["edit"]}
    assert not (run.path / ".merged.0123abcd").exists()
    with opened(options, tmp_path / "run") as workspace:
        folded(workspace, chosen_edit(workspace))
    assert (run.merged / "model.safetensors").is_file()  # of the same edit, and perhaps hours of copying
    before = (run.merged / "model.safetensors").read_bytes()
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(UserError, match="are not those that the run was made with"):
        merged(run, settings)
    assert (run.merged / "model.safetensors").read_bytes() == before


def test_a_merge_of_a_quantised_run_is_of_full_precision(options: dict[str, Any], tmp_path: Path) -> None:
    changes = ("model.quantization=4bit", "edit.row_normalization=none", "fold.merge=true")
    with opened(options, tmp_path / "run", *changes) as workspace:
        results = run_all(workspace)
    assert results["fidelity"]["preview_vs_merged"]["ok"]
    assert results["fidelity"]["merged_dtype"] == "float32"


def test_a_folder_of_an_earlier_version_is_shown(options: dict[str, Any], tmp_path: Path) -> None:
    from iconoclast_tl.report.tables.fidelity import fidelity_table

    with opened(options, tmp_path / "run", "fold.merge=true") as workspace:
        fidelity = run_all(workspace)["fidelity"]
    assert fidelity_table(fidelity).row_count == 5
    for key in ("merged_dtype", "on_quantised", "adapter_by_module", "merged_by_module"):
        del fidelity[key]
    assert fidelity_table(fidelity).row_count == 3


@pytest.mark.parametrize("estimator", ["mean", "median"])
def test_a_card_names_the_directions_that_the_outer_study_took(
    options: dict[str, Any], tmp_path: Path, estimator: str
) -> None:
    outer = ["search.method=outer", "search.outer.rounds=1", f'search.outer.estimators=["{estimator}"]']
    outer += ["search.n_trials=2", "search.gradient.prices=[0.01, 0.001, 2]"]
    outer += ["search.outer.benign_ranks=[5]", 'search.outer.row_normalizations=["pre"]']
    with opened(options, tmp_path / "run", *outer) as workspace:
        results = run_all(workspace)
    card = card_of(tmp_path / "run")
    assert f"estimator {estimator}" in card
    assert "benign_rank 5" in card  # the settings, which name those of `as set`, say 8
    assert "row normalisation pre" in card
    assert results["chosen"]["direction"]["set"].startswith(estimator)
    assert results["splits"]


def card_of(run: Path) -> str:
    return (run / "adapter" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("goal", "said", "sign"), [("suppress", "ablated", 1), ("strengthen", "amplified", -1)])
def test_kernels_go_the_way_of_the_goal_and_the_card_says_which(
    options: dict[str, Any], tmp_path: Path, goal: str, said: str, sign: int
) -> None:
    sometimes = ['evaluation.markers=["w5"]', "edit.row_normalization=none"]
    with opened(options, tmp_path / "run", f"search.goal={goal}", *sometimes) as workspace:
        assert 0 < sum(workspace.val.shows["target"]) < 3
        results = run_all(workspace)
    strengths = torch.tensor([*results["chosen"]["strengths"].values()])
    assert bool((strengths * sign >= 0).all())
    assert bool(strengths.any())
    card = card_of(tmp_path / "run")
    assert f"was {said}" in card
    assert f", {goal}, rule interval" in card


def test_a_card_tells_an_edit_that_was_taken_by_number(options: dict[str, Any], tmp_path: Path) -> None:
    with opened(options, tmp_path / "run", "search.take=2") as workspace:
        results = run_all(workspace)
    assert results["chosen"]["rule"] == "taken by number"
    assert "rule taken by number, trial 2" in card_of(tmp_path / "run")


@pytest.mark.parametrize("method", ["tpe", "outer"])  # without a gradient and with one
def test_what_is_always_there_is_not_strengthened(options: dict[str, Any], tmp_path: Path, method: str) -> None:
    del options["search"]["n_trials"]
    always = ["search.goal=strengthen", f"search.method={method}"]
    with (
        pytest.raises(UserError, match=r"always shows the behaviour: got 3 of 3 val target prompts"),
        opened(options, tmp_path / "run", *always) as workspace,
    ):
        run_all(workspace)


def test_the_time_of_an_interrupted_stage_counts_and_that_of_a_failed_one_does_not(
    options: dict[str, Any], tmp_path: Path
) -> None:
    def stop(error: type[BaseException]) -> None:
        time.sleep(0.05)
        raise error

    for error, spent in ((ValueError, 0.0), (KeyboardInterrupt, 0.05), (KeyboardInterrupt, 0.1)):
        with opened(options, tmp_path / "run") as workspace:
            with pytest.raises(error), workspace.timed("search"):
                stop(error)
            timing = (workspace.folder.read_manifest() or {}).get("timing", {})
        assert timing.get("search", 0) >= spent
        assert ("search" in timing) == bool(spent)


def test_stages_alone_give_what_the_run_gives(options: dict[str, Any], tmp_path: Path) -> None:
    with opened(options, tmp_path / "whole") as workspace:
        whole = run_all(workspace)
    for stage in ("collect", "search", "fold", "evaluate"):
        with opened(options, tmp_path / "steps") as workspace:
            if stage == "collect":
                collected(workspace)
            elif stage == "search":
                search_all(workspace)
            elif stage == "fold":
                folded(workspace, chosen_edit(workspace))
            else:
                steps = evaluated(workspace, chosen_edit(workspace))
    for part in ("pareto", "chosen", "base", "edited", "fidelity"):
        assert steps[part] == whole[part], part


def test_activations_are_collected_once(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(options, tmp_path / "run") as workspace:
        first = collected(workspace)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("collected again")

    monkeypatch.setattr("iconoclast_tl.activations.collect.collect_residuals", never)
    with opened(options, tmp_path / "run") as workspace:
        assert torch.equal(collected(workspace).target_train, first.target_train)
    with opened(options, tmp_path / "other", "prompts.system=w9") as workspace, pytest.raises(AssertionError):
        collected(workspace)


@pytest.fixture
def other_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule takes another candidate from now on."""
    honest = job_module.choose

    def other(found: list[Candidate], *rule: Any) -> Candidate:
        taken = honest(found, *rule)
        return next(candidate for candidate in found if candidate.number != taken.number)

    monkeypatch.setattr(job_module, "choose", other)


def test_another_choice_drops_all_that_was_made_of_the_old_edit(
    options: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with opened(options, tmp_path / "run", "fold.merge=true") as workspace:
        before = run_all(workspace)
        search_all(workspace)
        assert published(workspace.folder) == before  # the same choice keeps everything
    request.getfixturevalue("other_choice")
    with opened(options, tmp_path / "run", "fold.merge=false") as workspace:
        edit = search_all(workspace)
        assert not workspace.folder.results.exists()
        kept = workspace.folder.read_state()
        assert edit.digest() != before["chosen"]["edit"]
        assert [name for name in (*OF_AN_EVALUATION, "fidelity") if kept[name] is not None] == []
        assert not workspace.folder.adapter.exists()
        assert not workspace.folder.merged.exists()
        folded(workspace, edit)
        assert "Not measured yet" in (workspace.folder.adapter / "README.md").read_text(encoding="utf-8")
        after = evaluated(workspace, edit)
        assert after["evaluated"] == {"edit": edit.digest()}
        assert "Not measured yet" not in (workspace.folder.adapter / "README.md").read_text(encoding="utf-8")


def test_a_choice_interrupted_between_its_two_files_is_not_served_the_old_results(
    options: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(options, tmp_path / "run") as workspace:
        before = run_all(workspace)
    request.getfixturevalue("other_choice")

    honest = RunFolder.record

    def killed(self: RunFolder, **parts: Any) -> Any:
        """After the edit was stored, and before the state says that it is the chosen one."""
        if parts.get("chosen"):
            raise KeyboardInterrupt
        return honest(self, **parts)

    with monkeypatch.context() as patch, opened(options, tmp_path / "run") as workspace:
        patch.setattr(RunFolder, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            search_all(workspace)
    assert not workspace.folder.results.exists()
    with opened(options, tmp_path / "run") as workspace:
        edit = chosen_edit(workspace)
        assert edit.digest() != before["chosen"]["edit"]
        folded(workspace, edit)
        after = evaluated(workspace, edit)
        assert after["fidelity"]["edit"] == edit.digest() != before["fidelity"]["edit"]
        assert after["evaluated"] == {"edit": edit.digest()}
        assert not after["chosen"]  # and not the old one
        assert run_all(workspace)["chosen"]["edit"] == edit.digest()
        assert published(workspace.folder)["chosen"]["edit"] == edit.digest()


def test_a_merge_asked_for_later_gets_the_measured_card(options: dict[str, Any], tmp_path: Path) -> None:
    with opened(options, tmp_path / "run") as workspace:
        results = run_all(workspace)
    with opened(options, tmp_path / "run", "fold.merge=true") as workspace:
        folded(workspace, chosen_edit(workspace))
    for kind in ("adapter", "merged"):
        card = (tmp_path / "run" / kind / "README.md").read_text(encoding="utf-8")
        assert f"{results['edited']['behaviour_rate']['value']:.1%}" in card


def test_a_fold_that_is_not_its_preview_is_no_result_and_stays_none(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(options, tmp_path / "run") as workspace:
        edit = search_all(workspace)
        honest = fold_stage.fold
        monkeypatch.setattr(fold_stage, "fold", lambda edit, model: honest(scaled(edit, 0.5), model))
        for _ in range(2):  # a second try is not taken for done
            with pytest.raises(RuntimeError, match="not its preview"):
                folded(workspace, edit)
        assert not workspace.folder.read_state().get("fidelity")


def test_an_adapter_is_not_evaluated_into_a_run(options: dict[str, Any], tmp_path: Path) -> None:
    with opened(options, tmp_path / "run") as workspace:
        before = run_all(workspace)
        with pytest.raises(UserError, match="holds a run of its own"):
            evaluated_model(workspace, workspace.folder.adapter)
        assert published(workspace.folder) == before


def test_a_continued_run_notices_another_tokenizer_and_other_directions(
    options: dict[str, Any], llama_folder: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(llama_folder, tmp_path / "model")
    mine = merge(options, {"model": {"name": str(tmp_path / "model")}})
    with opened(mine, tmp_path / "run") as workspace:
        collected(workspace)
    file = tmp_path / "model" / "tokenizer.json"
    content = file.read_text(encoding="utf-8")
    file.write_text(content.replace('"w3": 10', '"w3": 11', 1).replace('"w4": 11', '"w4": 10', 1), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != content
    with pytest.raises(UserError, match="other tokens of the same prompts"), opened(mine, tmp_path / "run"):
        pass

    with opened(options, tmp_path / "first", "directions.estimator=median") as workspace:
        estimated(workspace, collected(workspace))
    with opened(options, tmp_path / "third", "directions.estimator=variance") as workspace:
        estimated(workspace, collected(workspace))
    taken = tmp_path / "taken.safetensors"
    shutil.copy(tmp_path / "first" / "directions.safetensors", taken)
    with opened(options, tmp_path / "second", f"directions.file={taken}") as workspace:
        run_all(workspace)
    shutil.copy(tmp_path / "third" / "directions.safetensors", taken)
    with (
        opened(options, tmp_path / "second", f"directions.file={taken}") as workspace,
        pytest.raises(UserError, match="made with other directions"),
    ):
        run_all(workspace)


def test_a_run_in_another_dtype_is_told_as_that(options: dict[str, Any], tmp_path: Path) -> None:
    with opened(options, tmp_path / "run") as workspace:
        collected(workspace)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["model"]["dtype"] = "bfloat16"
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="pass --dtype bfloat16"), opened(options, tmp_path / "run"):
        pass


def test_a_handful_of_prompts_is_enough(options: dict[str, Any], tmp_path: Path) -> None:
    few = {}
    for name, first in (("target", "w1"), ("neutral", "w2")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{first} w{20 + i}\n" for i in range(5)), encoding="utf-8")
        few[name] = str(tmp_path / f"{name}.txt")
    with opened(merge(options, {"prompts": few}), tmp_path / "run") as workspace:
        results = run_all(workspace)
    assert results["splits"]["val"] == {"target": 1, "neutral": 1}
    assert results["fidelity"]["ok"]


def test_a_search_that_is_complete_asks_the_model_nothing(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(options, tmp_path / "run") as workspace:
        run_all(workspace)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(Objective, "__init__", never)
    monkeypatch.setattr("iconoclast_tl.stages.evaluation.ask_base_and_edited", never)
    with opened(options, tmp_path / "run") as workspace:
        run_all(workspace)


def test_where_transformer_lens_cannot_activations_come_through_hugging_face(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = {"activations": {"through": "bridge"}}
    with open_workspace(merge(options, through), None, tmp_path / "bridge") as workspace:
        expected = collected(workspace)
    monkeypatch.setattr(
        "iconoclast_tl.activations.collect.make_twin", lambda model: Parity(False, 3.0, 1e-4, "the logits differ by 3")
    )
    said: list[str] = []
    with open_workspace(merge(options, through), None, tmp_path / "modules", say=said.append) as workspace:
        found = collected(workspace)
    assert torch.allclose(found.target_train, expected.target_train, atol=1e-5)
    assert any("the logits differ by 3; collecting through hooks" in line for line in said)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("method", ["tpe", "outer"])  # without a gradient and with one
def test_a_quantised_run_folds_on_full_precision_weights(
    options: dict[str, Any], tmp_path: Path, quantization: str, method: str
) -> None:
    changes = (f"model.quantization={quantization}", "edit.row_normalization=none", "directions.benign_rank=2")
    # The strongest edit: of a weak one quantising this random model moves a larger share than is allowed.
    changes = (
        *changes,
        f"search.method={method}",
        "search.gradient.prices=[1, 0.01, 3]",
        "search.choose=lexicographic",
    )
    with opened(options, tmp_path / "run", *changes) as workspace:
        results = run_all(workspace)
    assert results["fidelity"]["ok"]
    on_quantised = results["fidelity"]["on_quantised"]
    assert 0 < on_quantised["max_abs_logit_diff"] < on_quantised["tolerance"]
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"]


def test_row_normalisation_needs_weights_that_can_be_read(options: dict[str, Any], tmp_path: Path) -> None:
    changes = ("model.quantization=4bit", "edit.row_normalization=pre")
    with opened(options, tmp_path / "run", *changes) as workspace, pytest.raises(UserError) as error:
        run_all(workspace)
    assert "quantised" in str(error.value)
    assert not (tmp_path / "run" / "activations.safetensors").exists()


def test_an_adapter_is_evaluated_as_the_edit_it_was_folded_from(options: dict[str, Any], tmp_path: Path) -> None:
    with opened(options, tmp_path / "run") as workspace:
        run = run_all(workspace)
    with opened(options, tmp_path / "check") as workspace:
        found = evaluated_model(workspace, tmp_path / "run" / "adapter")
    for measure in ("behaviour_rate", "spill_rate", "compliance_rate"):
        assert found["edited"][measure] == run["edited"][measure]
    assert found["edited"]["kl_sequence"]["value"] == pytest.approx(run["edited"]["kl_sequence"]["value"], rel=1e-3)
    with opened(options, tmp_path / "alone") as workspace:
        assert evaluated_model(workspace, None)["edited"] is None


def test_directions_of_another_run_can_be_taken(options: dict[str, Any], tmp_path: Path) -> None:
    with opened(options, tmp_path / "first", "directions.estimator=median") as workspace:
        first = estimated(workspace, collected(workspace))
    file = tmp_path / "first" / "directions.safetensors"
    with opened(options, tmp_path / "second", f"directions.file={file}") as workspace:
        second = estimated(workspace, collected(workspace))
    assert torch.equal(first.vectors, second.vectors)


def test_a_search_over_edits_that_cannot_be_folded_is_refused_before_anything_is_computed(
    options: dict[str, Any], tmp_path: Path
) -> None:
    full = r"edit\.row_normalization full with search\.method "
    for changes, told in [
        (["edit.scope=stream"], r"edit\.scope stream"),
        (["search.method=outer", "edit.row_normalization=full"], full + "outer"),
    ]:
        with pytest.raises(UserError, match=told), opened(options, tmp_path, *changes) as workspace:
            run_all(workspace)
        assert not (tmp_path / "activations.safetensors").exists()


def test_two_processes_do_not_write_to_one_folder(options: dict[str, Any], tmp_path: Path) -> None:
    with (
        opened(options, tmp_path / "run"),
        pytest.raises(UserError, match="another process is writing"),
        opened(options, tmp_path / "run"),
    ):
        pass


@pytest.mark.slow
def test_a_run_killed_in_its_search_ends_as_if_it_had_not_been(
    options: dict[str, Any], prompts: dict[str, str], llama_folder: Path, tmp_path: Path
) -> None:
    changes = ["search.n_trials=25", "search.n_startup_trials=5"]
    with opened(options, tmp_path / "whole", *changes) as workspace:
        whole = run_all(workspace)
    sets = [f"--set={item}" for item in [*COMMON, *changes, 'evaluation.markers=["w3","w4","w5"]']]
    named = ["--model", str(llama_folder), "--target", prompts["target"], "--neutral", prompts["neutral"]]
    code = "from iconoclast_tl.cli import main; main()"
    command = [sys.executable, "-c", code, "run", *named, *sets, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "killed" / "study.journal"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count('"state":1') >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    with opened(options, tmp_path / "killed", *changes) as workspace:
        killed = run_all(workspace)
    for part in ("pareto", "chosen", "base", "edited", "fidelity"):
        assert killed[part] == whole[part], part
