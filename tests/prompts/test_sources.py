"""Every kind of prompt source gives the same prompts, and what cannot be read is the user's one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.prompts.prompt import Prompt, digest
from iconoclast_tl.prompts.sources import PromptSource, load_prompts

TEXTS = [f"prompt {i} über λ" for i in range(8)]


def _txt(folder: Path) -> str:
    (folder / "p.txt").write_text("\n\n".join(f"  {text} " for text in TEXTS) + "\r\n", encoding="utf-8")
    return f"{folder / 'p.txt'}"


def _json(folder: Path) -> str:
    (folder / "p.json").write_text(json.dumps([{"other": "x", "question": text} for text in TEXTS]), encoding="utf-8")
    return f"{folder / 'p.json'}#question"


def _jsonl(folder: Path) -> str:
    rows = "".join(json.dumps({"other": "x", "question": text}) + "\n" for text in TEXTS)
    (folder / "p.jsonl").write_text(rows, encoding="utf-8")
    return f"{folder / 'p.jsonl'}#question"


def _csv(folder: Path) -> str:
    pd.DataFrame({"other": "x", "question": TEXTS}).to_csv(folder / "p.csv", index=False)
    return f"{folder / 'p.csv'}#question"


def _parquet(folder: Path) -> str:
    pd.DataFrame({"other": "x", "question": TEXTS}).to_parquet(folder / "p.parquet")
    return f"{folder / 'p.parquet'}#question"


def _saved(folder: Path) -> str:
    import datasets

    datasets.Dataset.from_dict({"other": ["x"] * 8, "question": TEXTS}).save_to_disk(str(folder / "saved"))
    return f"{folder / 'saved'}#question"


def _saved_splits(folder: Path) -> str:
    import datasets

    wanted = datasets.Dataset.from_dict({"other": ["x"] * 8, "question": TEXTS})
    other = datasets.Dataset.from_dict({"other": ["x"], "question": ["another split"]})
    datasets.DatasetDict({"train": other, "held": wanted}).save_to_disk(str(folder / "splits"))
    return f"{folder / 'splits'}@held#question"


MAKERS = [_txt, _json, _jsonl, _csv, _parquet, _saved, _saved_splits]


@pytest.mark.parametrize("make", MAKERS)
def test_every_kind_of_source_gives_the_same_prompts(tmp_path: Path, make: Callable[[Path], str]) -> None:
    assert [prompt.text for prompt in load_prompts(make(tmp_path))] == TEXTS


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("cut", "want"),
    [("[:3]", TEXTS[:3]), ("[50%:]", TEXTS[4:]), ("[2:-1]", TEXTS[2:-1]), ("[25%:50%]", TEXTS[2:4])],
)
def test_slices_mean_what_they_mean_in_datasets(
    tmp_path: Path, make: Callable[[Path], str], cut: str, want: list[str]
) -> None:
    name, hash_, column = make(tmp_path).partition("#")
    split = name if "@" in name else f"{name}@train"
    assert [prompt.text for prompt in load_prompts(f"{split}{cut}{hash_}{column}")] == want


def test_a_slice_needs_no_split_name_for_a_file(tmp_path: Path) -> None:
    assert [prompt.text for prompt in load_prompts(f"{_txt(tmp_path)}@[:2]")] == TEXTS[:2]


@pytest.mark.parametrize("name", ["odd#name.txt", "odd@name.txt", "odd@train[:1].txt"])
def test_an_existing_path_wins_over_the_syntax(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a\nb\n")
    assert len(load_prompts(str(tmp_path / name))) == 2


def test_a_source_string_comes_apart() -> None:
    found = PromptSource.parse("owner/name-2.5:config@train[:400]#text")
    assert (found.name, found.config, found.split, found.column) == (
        "owner/name-2.5",
        "config",
        "train[:400]",
        "text",
    )


def test_the_usual_columns_need_no_name_and_others_do(tmp_path: Path) -> None:
    (tmp_path / "usual.csv").write_text("id,prompt\n1,a\n2,b\n")
    assert [prompt.text for prompt in load_prompts(str(tmp_path / "usual.csv"))] == ["a", "b"]
    (tmp_path / "unusual.csv").write_text("id,request\n1,a\n2,b\n")
    with pytest.raises(UserError, match=r"does not say which column.*id, request"):
        load_prompts(str(tmp_path / "unusual.csv"))


def test_system_messages_and_categories_come_along(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "system": "be brief", "kind": "x"}, {"prompt": "b", "kind": None}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load_prompts(str(tmp_path / "p.jsonl"), "kind")
    assert (first.system, first.category) == ("be brief", "x")
    assert (second.system, second.category) == (None, None)
    assert [prompt.category for prompt in load_prompts(str(tmp_path / "p.jsonl"))] == [None, None]


def test_text_that_looks_like_something_else_stays_text(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\n007\nNA\nnull\n2026-11-20\n")
    assert [prompt.text for prompt in load_prompts(str(tmp_path / "p.csv"))] == ["007", "NA", "null", "2026-11-20"]
    (tmp_path / "p.jsonl").write_text('{"date": "2026-11-20"}\n{"date": "007"}\n')
    assert [prompt.text for prompt in load_prompts(str(tmp_path / "p.jsonl"))] == ["2026-11-20", "007"]


def test_a_line_ends_at_a_newline_only(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\u2028still one\ntwo\x0cstill two\n", encoding="utf-8")
    assert len(load_prompts(str(tmp_path / "p.txt"))) == 2


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str) -> None:
    content = {"txt": "a\n", "jsonl": '{"prompt": "a"}\n', "csv": "prompt\na\n"}[suffix]
    (tmp_path / f"p.{suffix}").write_text(content, encoding="utf-8-sig")
    assert load_prompts(str(tmp_path / f"p.{suffix}")) == [Prompt("a")]


BAD = {
    "missing.txt": (None, "", "there is no prompt file"),
    "missing.csv": (None, "@train", "there is no prompt file"),
    "empty.txt": (b"", "", "is empty"),
    "blank.txt": (b" \n\n\t\n", "", "is empty"),
    "empty.csv": (b"", "", "cannot read|is empty"),
    "head.csv": (b"prompt\n", "", "is empty"),
    "cells.csv": (b"prompt,b\n,1\n,2\n", "", "is empty"),
    "empty.jsonl": (b"", "", "is empty"),
    "empty.json": (b"[]", "", "is empty"),
    "latin.txt": (b"caf\xe9\n", "", "cannot read.*utf-8"),
    "latin.csv": (b"prompt\ncaf\xe9\n", "", "cannot read.*utf-8"),
    "latin.jsonl": (b'{"prompt": "caf\xe9"}\n', "", "cannot read.*utf-8"),
    "column.csv": (b"prompt\na\n", "#question", "has no column 'question': want one of prompt"),
    "column.txt": (b"a\n", "#question", "has no columns"),
    "broken.json": (b"{", "", "cannot read"),
    "number.json": (b"3", "", "cannot read"),
    "rows.json": (b"[[1, 2], [3, 4]]", "", "does not say which column"),
    "chat.jsonl": (b'{"prompt": [{"role": "user", "content": "a"}]}\n', "", "something other than text"),
    "broken.parquet": (b"PAR1", "", "cannot read"),
    "slice.txt": (b"a\nb\n", "@train[oops]", "does not parse"),
    "beyond.txt": (b"a\nb\n", "@train[5:9]", "is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_the_users_line(tmp_path: Path, name: str) -> None:
    content, rest, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(f"{tmp_path / name}{rest}")
    assert name in str(caught.value)


def test_a_parquet_column_of_lists_is_the_users_line(tmp_path: Path) -> None:
    pd.DataFrame({"prompt": [["a", "b"], ["c"]]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="something other than text"):
        load_prompts(str(tmp_path / "p.parquet"))


def test_a_folder_that_is_no_dataset_and_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder of prompts"):
        load_prompts(str(tmp_path))
    spec = _saved_splits(tmp_path).replace("@held", "@nowhere")
    with pytest.raises(UserError, match="has no split 'nowhere': want train, held"):
        load_prompts(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("owner/name@train", "cannot load the hub dataset owner/name@train"),
        ("owner/name-2.5@train[:4]#text", "cannot load the hub dataset"),
        ("owner/name", r"owner/name@train\[:400\]"),
        ("./owner/name@train", "there is no prompt file"),
        ("", "has no name"),
        ("#text", "has no name"),
    ],
)
def test_what_is_neither_here_nor_on_the_hub(spec: str, message: str) -> None:
    """Offline, the hub cannot be reached; the line says which source was asked for."""
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(spec)
    assert "\n" not in str(caught.value)


def test_digests_depend_on_everything_and_on_the_order() -> None:
    a, b = Prompt("a"), Prompt("b")
    variants = [[a, b], [b, a], [a], [Prompt("a", "s"), b], [Prompt("a", None, "c"), b]]
    assert len({digest(prompts) for prompts in variants}) == len(variants)
    assert digest([a, b]) == digest([Prompt("a"), Prompt("b")])
    assert len(a.id) == 12


def test_a_named_split_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert len(load_prompts(f"{path}@train[:2]")) == 2
    with pytest.raises(UserError, match="a file has no split 'test'"):
        load_prompts(f"{path}@test[:2]")


def test_lines_of_text_have_no_category(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="has no columns: got category 'kind'; want a table"):
        load_prompts(str(tmp_path / "p.txt"), "kind")
    (tmp_path / "p.csv").write_text("prompt,kind\na,x\n")
    assert load_prompts(str(tmp_path / "p.csv"), "kind")[0].category == "x"
