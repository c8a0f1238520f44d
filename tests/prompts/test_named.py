"""A set's name stands for its rows in a dataset, with its columns; the hub itself is not asked here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.prompts import named
from iconoclast_tl.prompts.named import NamedSet, Where, find_named, kept, named_sets
from iconoclast_tl.prompts.sources import PromptSource, load_prompts

TYPES = ["recipes", "contrast_recipes", "gardening", "contrast_gardening", "music"]
PROMPTS = [f"prompt {i} of {kind}" for i, kind in enumerate(TYPES * 4)]
SAFE = [text for text in PROMPTS if "contrast" not in text]
Asked = list[tuple[str, str | None, str]]


def _table() -> dict[str, list[str]]:
    return {"id": [str(i) for i in range(20)], "type": TYPES * 4, "prompt": PROMPTS}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """A hub on which every dataset holds the same twenty rows."""
    asked: Asked = []

    def load_dataset(name: str, config: str | None = None, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({**_table(), "text": PROMPTS, "category": TYPES * 4})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_name_gives_the_rows_of_the_set_with_their_categories(hub: Asked) -> None:
    prompts = load_prompts("xstest")
    assert hub == [("natolambert/xstest-v2-copy", None, "prompts")]
    assert [prompt.text for prompt in prompts] == SAFE
    assert [prompt.category for prompt in prompts] == ["recipes", "gardening", "music"] * 4


def test_the_contrast_half_is_the_rest(hub: Asked) -> None:
    rest = [prompt.text for prompt in load_prompts("xstest-contrast")]
    assert sorted(rest + SAFE) == sorted(PROMPTS)


def test_configurations_and_columns_are_the_sets_own(hub: Asked) -> None:
    prompts = load_prompts("or-bench-hard")
    assert hub == [("bench-llm/or-bench", "or-bench-hard-1k", "train")]
    assert [prompt.text for prompt in prompts] == PROMPTS
    assert prompts[1].category == "contrast_recipes"
    assert load_prompts("advbench")[0].category is None


@pytest.mark.parametrize(
    ("spec", "want"),
    [("xstest[:3]", SAFE[:3]), ("xstest@[:3]", SAFE[:3]), ("xstest[50%:]", SAFE[6:]), ("xstest[-2:]", SAFE[-2:])],
)
def test_a_slice_counts_the_rows_of_the_set(hub: Asked, spec: str, want: list[str]) -> None:
    assert [prompt.text for prompt in load_prompts(spec)] == want
    assert hub[0][2] == "prompts"


def test_another_split_and_column_can_be_named(hub: Asked) -> None:
    assert [prompt.text for prompt in load_prompts("advbench@test[:2]#prompt")] == PROMPTS[:2]
    assert hub == [("mlabonne/harmful_behaviors", None, "test")]


def test_a_category_of_ones_own_counts_where_the_set_has_it(hub: Asked) -> None:
    assert load_prompts("xstest", "id")[0].category == "0"
    assert load_prompts("xstest", "topic")[0].category == "recipes"


def test_a_file_or_folder_of_that_name_wins(hub: Asked, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": ["from the folder", "and again"]}).save_to_disk(str(tmp_path / "xstest"))
    assert [prompt.text for prompt in load_prompts("xstest")] == ["from the folder", "and again"]
    assert [prompt.text for prompt in load_prompts("xstest@train[:1]")] == ["from the folder"]
    assert hub == []


@pytest.mark.parametrize("spec", ["xtest", "xtest[:10]", "xtest@[:10]"])
def test_an_unknown_name_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise FileNotFoundError("not on the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"xstest, xstest-contrast, or-bench, .*jailbreakbench"):
        load_prompts(spec)


def test_a_set_that_the_hub_does_not_give_says_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"hub dataset xstest \(natolambert/xstest-v2-copy@prompts#prompt\).*no network"
    ):
        load_prompts("xstest")


def test_a_slice_that_is_none_is_refused(hub: Asked) -> None:
    with pytest.raises(UserError, match=r"slice of xstest.* does not parse"):
        load_prompts("xstest[first ten]")


def _names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: Where | None) -> None:
    pd.DataFrame(_table()).to_csv(tmp_path / "rows.csv", index=False)
    own = NamedSet(
        name="own", source=f"{tmp_path / 'rows.csv'}#prompt", about="made up", url="", category="type", where=where
    )
    mapping: Mapping[str, NamedSet] = {"own": own}
    monkeypatch.setattr(named, "_shipped", lambda: mapping)


@pytest.mark.parametrize(
    ("where", "want"),
    [
        (None, PROMPTS),
        (Where("type", is_=("music",)), [text for text in PROMPTS if "music" in text]),
        (
            Where("type", begins=("contrast", "music")),
            [text for text in PROMPTS if "contrast" in text or "mus" in text],
        ),
        (Where("type", begins_not=("contrast",)), SAFE),
        (Where("type", begins=("contrast",), begins_not=("contrast_g",)), PROMPTS[1::5]),
    ],
)
def test_a_filter_keeps_the_rows_that_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: Where | None, want: list[str]
) -> None:
    _names(monkeypatch, tmp_path, where)
    prompts = load_prompts("own")
    assert [prompt.text for prompt in prompts] == want
    assert all(prompt.category is not None and prompt.category in prompt.text for prompt in prompts)


def test_a_filter_whose_column_is_gone_or_that_keeps_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _names(monkeypatch, tmp_path, Where("label", is_=("safe",)))
    with pytest.raises(UserError, match=r"has no column 'label'.*id, type, prompt"):
        load_prompts("own")
    _names(monkeypatch, tmp_path, Where("type", is_=("dancing",)))
    with pytest.raises(UserError, match="own is empty"):
        load_prompts("own")


def test_every_shipped_set_is_a_source_that_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, entry in named_sets().items():
        source = PromptSource.parse(entry.source)
        assert source.name.count("/") == 1, name
        assert source.split, name
        assert source.column, name
        assert "[" not in entry.source, name
        assert entry.url.startswith("https://"), name
        found = find_named(f"{name}@other[:5]#text")
        assert found is not None
        assert (found.named.name, found.split, found.slice, found.column) == (name, "other", "[:5]", "text")


def test_what_is_no_name_is_left_alone() -> None:
    for spec in ("prompts.txt", "xstest.txt", "./xstest", "owner/xstest@train", "", "#text", "@train"):
        assert find_named(spec) is None


def test_a_missing_cell_is_no_prefix() -> None:
    rows = [{"type": None}, {"type": "contrast"}]
    assert kept(rows, Where("type", begins_not=("contrast",))) == rows[:1]
