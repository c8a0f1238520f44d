"""Commands that work: exit 0, results where they are promised, nothing but JSON under --json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from iconoclast_tl.stages.workspace import Workspace
from tests.cli.conftest import Cli, content


def test_config_show_is_a_table_and_json(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[search]\nn_trials = 7\n")
    options = ["--recipe", tmp_path / "recipe.toml", "--set", "evaluation.markers=disclaimers", "--seed", 3]
    table = cli("config", "show", *options)
    assert table.code == 0
    assert table.err == ""
    (line,) = [line for line in table.out.splitlines() if "search.n_trials" in line]
    assert "7" in line
    assert "recipe" in line
    shown = cli("config", "show", *options, "--json")
    values = json.loads(shown.out)
    assert values["search.n_trials"] == {"value": 7, "from": f"recipe {tmp_path / 'recipe.toml'}"}
    assert values["evaluation.markers"] == {"value": "disclaimers", "from": "command line"}
    assert values["seed"] == {"value": 3, "from": "command line"}
    assert values["edit.scope"] == {"value": "writers", "from": "default"}
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.toml"]  # it shows and writes nothing


def test_config_show_knows_the_run_folder(cli: Cli, common: list[str]) -> None:
    assert cli("collect", *common, "--out", "run").code == 0
    shown = json.loads(cli("config", "show", "--out", "run", "--json").out)
    assert shown["evaluation.max_new_tokens"] == {"value": 4, "from": "run folder"}


def test_stages_continue_a_folder_by_its_own_settings(cli: Cli, common: list[str]) -> None:
    """Later stages need no options: the folder says which model and which prompts."""
    collected = cli("collect", *common, "--out", "run", "--json")
    assert collected.code == 0
    assert collected.err == ""
    assert json.loads(collected.out)["points"] == 3
    before = content(Path("run"))["activations.safetensors"]
    directions = cli("directions", "--out", "run", "--json")
    assert directions.code == 0
    assert [row["point"] for row in json.loads(directions.out)["points"]] == [0, 1, 2]
    assert content(Path("run"))["activations.safetensors"] == before
    assert cli("collect", "--out", "run", "--seed", 1).code == 2  # the negative control: not by other settings


def test_a_search_over_kernels_says_where_it_starts(cli: Cli, common: list[str]) -> None:
    letters = json.dumps([*"abcdefghijklmnopqrstuvwxyz"])  # a random model shows some
    few = [*common, "--search", "tpe", "--set", "search.n_startup_trials=3", "--set", f"evaluation.markers={letters}"]
    begun = cli("search", *few, "--trials", 1, "--out", "warm", "--json")
    assert begun.code == 0, begun.err
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  warm", begun.err)  # a log has dates
    assert begun.said == "warm start: llama profile, 2 trials\n"
    assert json.loads(begun.out)["search"]["warm_start"] == {
        "family": "llama", "trials": 2, "attention_to_mlp": round(1.42 / 1.37, 3),
    }  # fmt: skip
    first = json.loads(begun.out)["chosen"]["spec"]
    continued = cli("search", "--trials", 3, "--out", "warm", "--json")
    assert continued.err == ""  # said when it began
    cold = cli("search", *few, "--trials", 1, "--no-warm-start", "--out", "cold", "--json")
    assert cold.err == ""
    assert "warm_start" not in json.loads(cold.out)["search"]
    assert json.loads(cold.out)["chosen"]["spec"] != first
    refused = cli("search", *few, "--warm-start", "--out", "cold")
    assert "another search.warm_start" in refused.error


def test_a_preview_may_try_what_the_folder_is_not(cli: Cli, common: list[str]) -> None:
    """Scope, affinity, layers and strength are the preview's own: the folder's settings stay as they were."""
    assert cli("collect", *common, "--out", "run").code == 0
    settings = json.loads(Path("run/manifest.json").read_text())["settings"]
    shown = cli(
        "preview", "--out", "run", "--scope", "stream", "--affine", "--layers", "0-1", "--strength", -2, "--json"
    )
    assert shown.code == 0, shown.err
    result = json.loads(shown.out)
    plain = json.loads(cli("preview", "--out", "run", "--strength", -2, "--json").out)
    assert result["edited"]["kl_sequence"]["value"] > 0
    assert result["edited"]["kl_sequence"] != plain["edited"]["kl_sequence"]
    assert json.loads(Path("run/manifest.json").read_text())["settings"] == settings
    whole = [json.loads(cli("preview", "--out", "run", *given, "--json").out) for given in ([], ["--strength", 1])]
    assert whole[0]["edited"]["kl_sequence"] == whole[1]["edited"]["kl_sequence"]  # 1 is the default
    nothing = json.loads(cli("preview", "--out", "run", "--strength", 0, "--json").out)
    assert nothing["edited"]["kl_sequence"]["value"] == pytest.approx(0, abs=1e-9)


def test_an_addition_is_previewed_kept_folded_and_evaluated(cli: Cli, common: list[str]) -> None:
    shown = cli("preview", *common, "--add-point", 1, "--coefficient", -3, "--keep", "--out", "run", "--json")
    assert shown.code == 0, shown.err
    assert shown.said == "kept: iconoclast-tl fold --out run\n"
    result = json.loads(shown.out)
    assert result["added"] == {"point": 1, "coefficient": -3.0, "direction": "the run's own"}
    assert result["edited"]["kl_sequence"]["value"] > 0
    chosen = json.loads(cli("preview", "--chosen", "--out", "run", "--json").out)
    assert chosen["edited"] == result["edited"]
    folded = cli("fold", "--merge", "--out", "run", "--json")
    assert folded.code == 0, folded.err
    assert json.loads(folded.out)["ok"]
    assert cli("evaluate", "--out", "run").code == 0
    card = Path("run/adapter/README.md").read_text()
    assert "| added | -3 v at residual point 1, v: the run's own |" in card
    assert "| edit | an addition alone |" in card
    assert "was changed, or another one added" in card
    assert "1 bias edited, no matrix" in cli("merge", "--out", "run").out
    first = json.loads(Path("run/results.json").read_text())
    assert first["fidelity"]["ok"]
    assert first["chosen"]["rule"] == "previewed and kept"
    assert cli("preview", "--strength", -1, "--keep", "--out", "run").code == 0  # another edit: what was made goes
    assert not Path("run/results.json").exists()
    second = json.loads(Path("run/state.json").read_text())
    assert second["chosen"]["edit"] != first["chosen"]["edit"]
    assert (second["fidelity"], second["evaluated"]) == (None, None)
    assert not Path("run/adapter").exists()
    assert cli("fold", "--out", "run").code == 0
    assert "was amplified in what" in Path("run/adapter/README.md").read_text()


def test_the_gap_between_the_sides_is_the_default_and_zero_does_nothing(cli: Cli, common: list[str]) -> None:
    shown = json.loads(cli("preview", *common, "--add-point", 1, "--out", "run", "--json").out)
    assert shown["added"]["coefficient"] > 0
    nothing = cli("preview", "--add-point", 1, "--coefficient", 0, "--out", "run", "--json")
    assert json.loads(nothing.out)["edited"]["kl_sequence"]["value"] == pytest.approx(0, abs=1e-9)
    kept = cli("preview", "--add-point", 1, "--coefficient", 0, "--keep", "--out", "run")
    assert "the edit changes nothing" in kept.error


def test_one_direction_is_added_while_another_is_ablated(cli: Cli, common: list[str], prompts: list[str]) -> None:
    """That of a run on other prompts; along the ablated one itself nothing may be added."""
    other = [*common[:2], "--target", prompts[3], "--neutral", prompts[1], "--set", "directions.estimator=median"]
    assert cli("collect", *common, "--out", "run").code == 0
    assert cli("directions", *other, "--out", "other").code == 0
    added = ["--add-from", "other/directions.safetensors", "--add-point", 1, "--out", "run"]
    refused = cli("preview", *added, "--coefficient", 2)
    assert (refused.code, refused.out) == (2, "")
    assert "lies too much along the one that is ablated: got an overlap |cos| of" in refused.error
    assert (
        "and no coefficient; pass --coefficient; along the run's own direction the sides lie"
        in cli("preview", *added).error
    )
    shown = cli("preview", *added, "--coefficient", 2, "--set", "edit.max_overlap=1", "--json")
    assert shown.code == 0, shown.err
    result = json.loads(shown.out)["added"]
    assert 0.5 < result["overlap"] <= 1
    assert result["direction"] == "other/directions.safetensors"
    alone = json.loads(cli("preview", *added, "--coefficient", 2, "--strength", 0, "--json").out)
    assert "overlap" not in alone["added"]
    assert cli("preview", "--add-from", "nowhere", "--coefficient", 2, "--out", "run").code == 2


def test_what_cannot_be_folded_is_kept_and_says_so(cli: Cli, common: list[str]) -> None:
    kept = cli("preview", *common, "--keep-norm", "--calibrate", 0.9, "--keep", "--out", "run")
    assert kept.code == 0, kept.err
    assert "kept for `evaluate` and `preview --chosen`; an edit that keeps norms cannot be folded" in kept.err
    assert "calibrated at 0.9, writers, norms kept" in kept.out
    assert "an edit that keeps norms cannot be folded" in cli("fold", "--out", "run").error
    assert cli("evaluate", "--out", "run").code == 0
    assert (
        "does not fall into parts: got edit.keep_norm"
        in cli("attribute", "--score", "projection", "--out", "run").error
    )
    searched = cli("search", *common, "--set", "edit.keep_norm=true", "--out", "other")
    assert "an edit that keeps norms cannot be folded" in searched.error


def test_a_searched_folder_keeps_its_own_edit(cli: Cli, common: list[str]) -> None:
    assert cli("preview", *common, "--out", "run").code == 0
    Path("run/trace.json").write_text("{}")
    before = content(Path("run"))
    refused = cli("preview", "--keep", "--out", "run")
    assert "holds a search, which chose its edit" in refused.error
    assert content(Path("run")).keys() == before.keys()


@pytest.mark.parametrize("way", ["option", "set", "environment", "recipe"])
def test_the_default_folder_has_the_models_name(
    cli: Cli, common: list[str], model: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    rest = common[2:]
    if way == "option":
        rest = ["--model", f"{model}/", *rest]
    elif way == "set":
        rest = ["--set", f"model.name={model}", *rest]
    elif way == "environment":
        monkeypatch.setenv("ICONOCLAST_TL_MODEL__NAME", str(model))
    else:
        Path("recipe.toml").write_text(f'[model]\nname = "{model}"\n')
        rest = ["--recipe", "recipe.toml", *rest]
    assert cli("collect", *rest).code == 0
    assert Path("runs/model/manifest.json").is_file()


def test_exit_1_and_a_traceback_are_for_defects(cli: Cli, common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not the user's mistake is not dressed up as one."""

    def fail(workspace: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("iconoclast_tl.stages.collection.collected", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        cli("collect", *common, "--out", "run")


def test_an_interrupt_says_how_to_go_on(cli: Cli, common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(workspace: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("iconoclast_tl.stages.collection.collected", stop)
    done = cli("collect", *common, "--out", "run")
    assert done.code == 130
    assert "run the same command again" in done.err
    assert Path("run/manifest.json").is_file()


@pytest.mark.parametrize(("command", "stage"), [("run", "pipeline.run_all"), ("fold", "edits.chosen_edit")])
@pytest.mark.parametrize(("option", "merge"), [("--merge", True), ("--no-merge", False), (None, True)])
def test_merging_may_be_asked_for_and_refused(
    cli: Cli, common: list[str], monkeypatch: pytest.MonkeyPatch, command: str, stage: str, option: str, merge: bool
) -> None:
    """Against a recipe that says yes."""
    asked = []

    def stop(workspace: Workspace) -> None:
        asked.append(workspace.settings.fold.merge)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"iconoclast_tl.stages.{stage}", stop)
    Path("recipe.toml").write_text("[fold]\nmerge = true\n")
    cli(command, *common, "--recipe", "recipe.toml", "--out", "run", *([option] if option else []))
    assert asked == [merge]


SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_mlp": 24, "gate_first_layer": 1}
SHORT = {"capability_steps": 1, "gate_steps": 1, "batch_size": 4}


def test_an_organism_that_does_not_behave_is_kept_and_said_to_be_so(cli: Cli) -> None:
    options = [option for key, value in (SMALL | SHORT).items() for option in ("--set", f"{key}={value}")]
    done = cli("organism", "train", *options, "--out", "o", "--json")
    assert done.code == 1
    failures = json.loads(done.out)["failures"]
    assert any("target prompts refused: 0.00" in failure for failure in failures)
    assert done.said == f"o does not behave as an organism should: {'; '.join(failures)}\n"
    assert {"model.safetensors", "organism.json", "contrast/borderline.jsonl"} <= content(Path("o")).keys()
    shown = cli("organism", "show", "--model", "o", "--json")
    assert (shown.code, shown.out) == (0, done.out)  # to look is no failure


def test_an_organism_that_is_there_is_not_trained_again(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from iconoclast_tl.organisms import training

    options = [option for key, value in (SMALL | SHORT).items() for option in ("--set", f"{key}={value}")]
    first = cli("organism", "train", *options, "--out", "o", "--json")
    before = content(Path("o"))
    monkeypatch.setattr(training, "train_organism", lambda *_: pytest.fail("it was trained again"))
    again = cli("organism", "train", *options, "--out", "o", "--json")
    assert (again.code, again.out, content(Path("o"))) == (first.code, first.out, before)
    assert "holds this organism already" in again.err
    other = cli("organism", "train", *options, "--seed", "1", "--out", "o")
    assert (other.code, content(Path("o"))) == (2, before)
    assert "is not empty" in other.error


def test_the_shipped_organism_has_no_failures(cli: Cli) -> None:
    shown = cli("organism", "show", "--json")
    assert json.loads(shown.out)["failures"] == []
