"""The documents tell the truth: what they name exists, what they link to is there, and their Python runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

import iconoclast_tl as itl
from scripts.links import anchors_of, broken_in, documents, why_broken
from scripts.reference import command_line_page, public_names_page, settings_page, settings_rows, type_name
from tests.architectures import ARCHITECTURES
from tests.documents import PAGES, ROOT, RUNNABLE, few_prompts, require_described, run_python_of

STAGES = "model|prompts|activations|directions|edit|attribution|evaluation|harness|scores|search|fold"
HOLDING = re.compile(rf"`(?:--set )?'?((?:{STAGES})\.[a-z_]+(?:\.[a-z_]+)*)(?=[=`'\s])")
FILES = (".json", ".jsonl", ".html", ".txt", ".safetensors", ".journal", ".py", ".md")


def write_sources(folder: Path) -> None:
    """The organism's prompts under the names that the documents use."""
    train = few_prompts().train
    (folder / "targets.txt").write_text("\n".join(prompt.text for prompt in train.target), encoding="utf-8")
    rows = [json.dumps({"prompt": prompt.text}) for prompt in train.neutral]
    (folder / "neutrals.jsonl").write_text("\n".join(rows), encoding="utf-8")
    recipe = ROOT / "experiments" / "demo" / "recipe.toml"
    (folder / "recipe.toml").write_text(recipe.read_text(encoding="utf-8"), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources(tmp_path)
    run_python_of(page, monkeypatch, tmp_path)


def test_a_key_of_results_that_nobody_describes_is_found() -> None:
    require_described({"schema": 1, "fidelity": {"ok": True}, "pareto": [{"kl": 0.1}]})
    with pytest.raises(AssertionError):
        require_described({"schema": 1, "fidelity": {"another": True}})


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    assert not broken_in(path)


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A `first` heading\n\n## A first heading\n\n```\n# no heading\n```\n")
    text = (tmp_path / "there.md").read_text()
    assert anchors_of(text) == {"a-first-heading", "a-first-heading-1"}
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](there.md#a-first-heading-1) [c](https://example.org/x) `[d](nowhere.md)`\n")
    assert not broken_in(page)
    for link in ("nowhere.md", "there.md#no-heading", "#nothing", "htp://example.org"):
        assert why_broken(page, link)
        page.write_text(f"[a]({link})\n")
        assert len(broken_in(page)) == 1


def test_settings_that_the_documents_name_exist() -> None:
    from iconoclast_tl.stages.settings import Settings, flatten

    known = set(flatten(Settings().model_dump()))
    known |= {key[: end.start()] for key in known for end in re.finditer(r"\.", key)}
    pages = [page for page in PAGES if page.stem != "results_json"]  # whose keys are no settings
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages):
        text = page.read_text(encoding="utf-8")
        named = {name for name in HOLDING.findall(text) if not name.endswith(FILES)}
        named |= set(re.findall(rf"--set '?((?:{STAGES})\.[a-z_.]+)=", text))
        named = {name for name in named if not is_python(name)}
        assert named <= known, page
    everywhere = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(set(HOLDING.findall(everywhere))) > 10


def test_public_names_that_the_documents_use_exist() -> None:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + PAGES
    named = {name for page in pages for name in re.findall(r"\bitl\.(\w+)", page.read_text(encoding="utf-8"))}
    assert named <= set(itl.__all__)
    assert {"load_model", "search_strengths", "estimator"} <= named


def is_python(name: str) -> bool:
    """Attributes of objects that the documents call by the name of a stage: `directions.at`, `model.bridge`."""
    head, _, attribute = name.partition(".")
    thing = {"model": itl.Model, "directions": itl.Directions, "edit": itl.Edit}.get(head)
    return thing is not None and (hasattr(thing, attribute) or attribute in thing.__dataclass_fields__)


def test_the_tree_names_every_room_and_only_rooms_that_are_there() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The rooms of the house")[1].split("```")[1]
    named = re.findall(r"^  (\S+)/ ", tree, re.M)
    tracked = subprocess.run(["git", "ls-files", "iconoclast_tl"], cwd=ROOT, capture_output=True, text=True, check=True)
    parts = [Path(line).parts for line in tracked.stdout.splitlines()]
    assert sorted(named) == sorted({part[1] for part in parts if len(part) > 2})
    assert {part[1] for part in parts if len(part) == 2} <= {"__init__.py", "py.typed"}


def test_the_table_of_architectures_has_a_row_for_each_of_the_suite() -> None:
    text = (ROOT / "docs" / "reference" / "architectures.md").read_text(encoding="utf-8")
    table = text.split("<!-- architectures -->")[1].split("<!-- /architectures -->")[0]
    assert re.findall(r"^\| ([^|]+) \| [A-Z]", table, re.M) == list(ARCHITECTURES)


def test_every_setting_is_in_the_reference_with_type_default_and_meaning() -> None:
    from iconoclast_tl.stages.settings import Settings, flatten

    rows = {row[0]: row[1:] for row in settings_rows(Settings)}
    known = set(flatten(Settings().model_dump(mode="json")))
    assert {key for key in known if not any(key.startswith(f"{row}.") for row in rows)} == set(rows)
    assert all(kind and default and meaning for kind, default, _, meaning in rows.values())
    assert rows["search.n_trials"][:3] == ("integer or null, ≥ 1", "`null`", "yes")
    assert rows["search.goal"][:3] == ("`suppress` or `strengthen`", '`"suppress"`', "no")
    assert rows["edit.calibrate"][0] == "number or null, > 0, < 1"
    assert "`true` by preset `iconoclast`" in settings_page()
    assert type_name(tuple[str, ...]) == "list of text"


def test_every_command_is_in_the_reference_with_its_options() -> None:
    page = command_line_page()
    for heading in ("## run", "## organism train", "## config show"):
        assert f"{heading}\n" in page
    preview = page.split("## preview\n")[1].split("\n## ")[0]
    assert "| `--strength` | number |" in preview
    assert "`--model`" not in preview.split("shared options")[0].split("| option |")[1]


def test_every_public_name_is_in_the_reference() -> None:
    named = re.findall(r"auto(?:class|function|data):: iconoclast_tl\.(\w+)", public_names_page())
    assert sorted(named) == sorted(itl.__all__)
