"""Which source wins, where each value came from, and what no source may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search.presets import PRESETS
from iconoclast_tl.stages.settings import (
    Effective,
    Settings,
    effective_settings,
    flatten,
    merge,
    nest,
    parse_assignments,
)

KEY = "directions.benign_rank"
"""A setting that the preset sets too: iconoclast's is 8, the default 0."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "recipe.toml"


def row(effective: Effective, key: str) -> tuple[Any, str]:
    """(value, source) of one setting."""
    (found,) = [(value, source) for name, value, source in effective.entries() if name == key]
    return found


def test_each_source_wins_over_those_below_it(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from below: every step adds the next stronger source, and the value and its origin follow."""
    assert Settings().directions.benign_rank == 0  # the default, below the preset
    assert row(effective_settings({}), KEY) == (8, "preset iconoclast")
    folder = effective_settings(nest(KEY, 3)).settings.model_dump(mode="json")
    assert row(effective_settings({}, None, folder), KEY) == (3, "run folder")
    recipe.write_text("[directions]\nbenign_rank = 4\n")
    assert row(effective_settings({}, recipe), KEY) == (4, f"recipe {recipe}")
    monkeypatch.setenv("ICONOCLAST_TL_DIRECTIONS__BENIGN_RANK", "5")
    assert row(effective_settings({}, recipe), KEY) == (5, "environment")
    assert row(effective_settings(nest(KEY, 6), recipe), KEY) == (6, "command line")
    assert row(effective_settings(nest(KEY, 6), recipe), "directions.hybrid_weight") == (0.5, "default")


def test_a_changeable_setting_of_the_folder_gives_way_and_a_fixed_one_does_not(recipe: Path) -> None:
    folder = effective_settings({"search": {"method": "tpe", "n_trials": 7}, "seed": 3}).settings.model_dump(
        mode="json"
    )
    assert row(effective_settings({}, None, folder), "search.n_trials") == (7, "run folder")
    assert row(effective_settings(nest("search.n_trials", 9), None, folder), "search.n_trials") == (9, "command line")
    recipe.write_text("seed = 4\n")
    with pytest.raises(UserError, match=r"run with another seed: got 4; want 3; .*pass another --out"):
        effective_settings({}, recipe, folder)
    recipe.write_text("seed = 3\n")
    assert row(effective_settings({}, recipe, folder), "seed") == (3, f"recipe {recipe}")


@pytest.mark.parametrize("key", ["model.name", "prompts.system", "edit.affine", "evaluation.kl_tokens"])
def test_what_the_numbers_depend_on_is_fixed(key: str) -> None:
    folder = effective_settings({}).settings.model_dump(mode="json")
    values = {"edit.affine": True, "evaluation.kl_tokens": 3}
    with pytest.raises(UserError, match=f"another {key}"):
        effective_settings(nest(key, values.get(key, "other")), None, folder)


@pytest.mark.parametrize(
    "key",
    [
        "model.device",
        "activations.batch_size",
        "activations.positions",
        "directions.estimator",
        "evaluation.batch_size",
        "search.choose",
        "fold.merge",
    ],
)
def test_how_far_and_how_fast_may_change(key: str) -> None:
    folder = effective_settings({}).settings.model_dump(mode="json")
    values = {"model.device": "cuda", "search.choose": "knee", "fold.merge": True, "directions.estimator": "median"}
    assert row(effective_settings(nest(key, values.get(key, 2)), None, folder), key)[1] == "command line"


def test_the_preset_of_the_strongest_source_counts(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.write_text('[search]\npreset = "heretic"\n')
    assert row(effective_settings({}, recipe), "search.n_trials") == (200, "preset heretic")
    assert row(effective_settings({}, recipe), "edit.row_normalization") == ("full", "preset heretic")
    monkeypatch.setenv("ICONOCLAST_TL_SEARCH__PRESET", "iconoclast")
    assert row(effective_settings({}, recipe), "edit.row_normalization") == ("none", "preset iconoclast")


def test_a_warm_start_is_of_our_preset_and_of_tpe() -> None:
    heretic = nest("search.preset", "heretic")
    assert row(effective_settings({}), "search.warm_start") == (True, "default")
    assert row(effective_settings(heretic), "search.warm_start") == (False, "preset heretic")
    warm = nest("search.warm_start", True)
    assert row(effective_settings(merge(heretic, warm)), "search.warm_start") == (True, "command line")
    assert effective_settings(nest("search.warm_start", False)).settings.search.method == "gradient"
    with pytest.raises(UserError, match=r"a warm start is of a search over kernels: got search.method gradient"):
        effective_settings(warm)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_folder_older_than_a_setting_goes_on(preset: str) -> None:
    """What its manifest does not say is what its preset says; what it says stays fixed."""
    folder = effective_settings(nest("search.preset", preset)).settings.model_dump(mode="json")
    warm = folder["search"].pop("warm_start")
    assert effective_settings({}, None, folder).settings.search.warm_start == warm
    other = merge(nest("search.warm_start", not warm), nest("search.method", "tpe"))
    folder["search"]["method"] = "tpe"
    with pytest.raises(UserError, match=r"another search.warm_start"):
        effective_settings(other, None, folder)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_made_of_settings(name: str) -> None:
    effective = effective_settings({"search": {"preset": name}})
    assert {source for _, _, source in effective.entries()} == {"default", "command line", f"preset {name}"}


def test_every_setting_has_a_row_and_a_source() -> None:
    rows = effective_settings({}).entries()
    assert [key for key, _, _ in rows] == list(flatten(Settings().model_dump(mode="json")))
    assert {source for _, _, source in rows} == {"default", "preset iconoclast"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("serch.n_trials", 3, "unknown setting serch{at}: want one of model, prompts"),
        ("search.trials", 3, "unknown setting search.trials{at}: want one of preset, method"),
        ("search.space.weight", [1], "unknown setting search.space.weight{at}: want one of direction_scopes"),
        ("search.n_trials", "many", "the setting search.n_trials{at} does not fit: got 'many'; want a valid integer"),
        ("search.n_trials", 0, "the setting search.n_trials{at} does not fit: got .*0.*greater than or equal to 1"),
        ("model.dtype", "int8", "the setting model.dtype{at} does not fit: got 'int8'; want 'auto', 'float32'"),
        ("search.preset", "none", "search.preset does not fit: got 'none'; want one of iconoclast, heretic"),
        ("search.preset", ["a"], "search.preset does not fit: got .*a.*; want one of iconoclast, heretic"),
        ("seed", -1, "the setting seed{at} does not fit: got .*-1"),
    ],
)
@pytest.mark.parametrize("source", ["command line", "environment", "recipe"])
def test_a_wrong_setting_is_told_with_where_it_stands(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, source: str, key: str, value: Any, message: str
) -> None:
    given: dict[str, Any] = {}
    if source == "command line":
        given = nest(key, value)
    elif source == "environment":
        monkeypatch.setenv(f"ICONOCLAST_TL_{key.replace('.', '__').upper()}", str(value))
    else:
        table, _, name = key.rpartition(".")
        recipe.write_text(f"[{table}]\n{name} = {value!r}\n" if table else f"{name} = {value!r}\n")
    at = r" \(recipe .*\)" if source == "recipe" else rf" \({source}\)"
    if source == "environment" and key.startswith("serch"):
        message, at = "unknown setting in the environment: ICONOCLAST_TL_SERCH__N_TRIALS", ""
    with pytest.raises(UserError, match=message.format(at=at)) as caught:
        effective_settings(given, recipe if source == "recipe" else None)
    assert "\n" not in str(caught.value)


def test_a_list_in_the_environment_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICONOCLAST_TL_SEARCH__SPACE__MAX_WEIGHT", "oops")
    with pytest.raises(UserError, match=r"environment does not parse.*search"):
        effective_settings({})
    monkeypatch.setenv("ICONOCLAST_TL_SEARCH__SPACE__MAX_WEIGHT", "[1, 2]")
    assert row(effective_settings({}), "search.space.max_weight") == ([1.0, 2.0], "environment")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no recipe"), (b"x = ", "does not parse"), (b'x = "\xff"', "does not parse")],
)
def test_a_recipe_that_cannot_be_read(recipe: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        recipe.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        effective_settings({}, recipe)
    assert str(recipe) in str(caught.value)


def test_a_recipe_is_no_place_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no recipe"):
        effective_settings({}, tmp_path)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("search.n_trials=60", {"search": {"n_trials": "60"}}),
        ("prompts.system=a=b", {"prompts": {"system": "a=b"}}),
        ("prompts.system=", {"prompts": {"system": ""}}),
        ("evaluation.match=null", {"evaluation": {"match": None}}),
        (' evaluation.markers = ["i cannot", "no"] ', {"evaluation": {"markers": ["i cannot", "no"]}}),
    ],
)
def test_assignments_parse(text: str, want: dict[str, Any]) -> None:
    assert parse_assignments([text]) == want


@pytest.mark.parametrize("text", ["search.n_trials", "=3", "", ".=1", "search.=1", ".n=1"])
def test_what_is_no_assignment_is_the_users_line(text: str) -> None:
    with pytest.raises(UserError, match="--set takes key=value"):
        parse_assignments([text])


@pytest.mark.parametrize("text", ["evaluation.markers=[1", "search={a"])
def test_a_list_in_an_assignment_is_json(text: str) -> None:
    with pytest.raises(UserError, match="JSON"):
        parse_assignments([text])


def test_assignments_reach_their_types() -> None:
    given = parse_assignments(
        [
            "prompts.system=007",
            "prompts.raw_prompts=true",
            "search.max_rate=0.25",
            'evaluation.markers=["i cannot"]',
            "search.space.max_weight=[0, 2]",
            "evaluation.match=null",
            "seed=5",
        ]
    )
    found = effective_settings(given).settings
    assert found.prompts.system == "007"  # text stays text, whatever it looks like
    assert found.prompts.raw_prompts is True
    assert found.search.max_rate == 0.25
    assert found.evaluation.markers == ("i cannot",)
    assert found.search.space.max_weight == (0.0, 2.0)
    assert found.evaluation.match is None
    assert found.seed == 5


def test_the_last_assignment_of_a_key_counts() -> None:
    assert parse_assignments(["seed=1", "search.kl=sequence", "seed=2"]) == {"seed": "2", "search": {"kl": "sequence"}}


TABLES = ("evaluation.classifier.labels", "evaluation.nli.hypotheses", "model.max_memory")
"""Settings that are tables themselves."""


@pytest.mark.parametrize("key", TABLES)
def test_a_table_replaces_the_one_below_it_and_its_neighbours_stay(
    key: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From source to source upwards; were rows merged, a label or device that somebody took out would come back."""
    stage, name = key.rpartition(".")[::2]
    beside = f"{stage}.revision"
    small, value = ('"1GB"', "1GB") if name == "max_memory" else ('"says."', "says.")
    if name == "labels":
        small, value = "true", True
    below = {"model": {"device_map": "auto"}}
    folder = effective_settings(merge(below, nest(key, {"a.b": value, "c": value}))).settings.model_dump(mode="json")
    assert row(effective_settings({}, None, folder), key) == ({"a.b": value, "c": value}, "run folder")  # with its dot
    recipe.write_text(f'[{key}]\n"d.e" = {small}\n')
    assert row(effective_settings({}, recipe, folder), key) == ({"d.e": value}, f"recipe {recipe}")
    monkeypatch.setenv(f"ICONOCLAST_TL_{key.replace('.', '__').upper()}", f'{{"f.g.h": {small}}}')
    assert row(effective_settings({}, recipe, folder), key) == ({"f.g.h": value}, "environment")
    given = merge(nest(beside, "main"), parse_assignments([f'{key}={{"i.j": {small}}}']))
    if stage == "model":
        given = parse_assignments([f'{key}={{"i.j": {small}}}', "model.device=cpu"])
        beside = "model.device"
    found = effective_settings(given, recipe, folder)
    assert row(found, key) == ({"i.j": value}, "command line")
    assert row(found, beside)[1] == "command line"  # what stands beside a table is merged as ever


def test_tables_are_one_value_and_all_else_is_flat() -> None:
    """A key with a dot in it would make another setting of a row."""
    nested = {"evaluation": {"classifier": {"labels": {"a.b": True}, "name": "x"}}, "seed": 1}
    flat = {"evaluation.classifier.labels": {"a.b": True}, "evaluation.classifier.name": "x", "seed": 1}
    assert flatten(nested) == flat
    assert set(TABLES) <= set(flatten(Settings().model_dump(mode="json")))
    assert "evaluation.classifier" not in flatten(Settings().model_dump(mode="json"))


@pytest.mark.parametrize("key", TABLES)
def test_a_row_of_a_table_alone_is_no_assignment(key: str) -> None:
    """The second would silently take the place of the first."""
    with pytest.raises(UserError, match=rf"{key} is a table, set as a whole: got '{key}.a'"):
        parse_assignments([f"{key}.a=true"])


def test_tables_of_a_stage_of_the_same_name_elsewhere_are_merged() -> None:
    """It is the whole dotted key that makes a table."""
    below, above = {"edit": {"labels": {"a": 1}}}, {"edit": {"labels": {"b": 2}}}
    assert merge(below, above) == {"edit": {"labels": {"a": 1, "b": 2}}}
    lower = {"evaluation": {"classifier": {"labels": {"a": 1}}}}
    upper = {"evaluation": {"classifier": {"labels": {"b": 2}}}}
    assert merge(lower, upper) == upper


NESTED = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3), max_leaves=6
).filter(lambda value: isinstance(value, dict))


@settings(max_examples=60, deadline=None)
@given(below=NESTED, above=NESTED)
def test_merging_keeps_everything_above_and_what_it_does_not_cover_below(
    below: dict[str, Any], above: dict[str, Any]
) -> None:
    merged = flatten(merge(below, above))
    over = flatten(above)
    assert over.items() <= merged.items()
    for key, value in flatten(below).items():
        covered = any(key == k or key.startswith(f"{k}.") or k.startswith(f"{key}.") for k in over)
        assert covered or merged[key] == value


@settings(max_examples=30, deadline=None)
@given(value=NESTED)
def test_flat_settings_nest_again(value: dict[str, Any]) -> None:
    again: dict[str, Any] = {}
    for key, leaf in flatten(value).items():
        again = merge(again, nest(key, leaf))
    assert again == value


@pytest.mark.parametrize("key", ["_env_file", "_cli_parse_args", "_secrets_dir", "model_config", "model._x"])
def test_options_of_the_settings_library_are_no_settings(key: str) -> None:
    with pytest.raises(UserError, match=f"unknown setting {key} ") as caught:
        effective_settings(nest(key, "true"))
    assert "Extra inputs" not in str(caught.value)


def test_settings_are_what_they_are_given_whatever_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `effective_settings` reads sources: a manifest's settings are not bent by the reader's environment."""
    monkeypatch.setenv("ICONOCLAST_TL_SEED", "5")
    assert Settings().seed == 0
    assert effective_settings({}).settings.seed == 5
