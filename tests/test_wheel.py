"""The installed wheel, in an empty folder: the front door works there, and a user's type checker knows its types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
TYPES = pytest.mark.xdist_group("types")  # mypy runs once, for all of them
ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).parent / "scripts"
N_PROMPTS = 40
"""Of each side: 24 to train on, 8 to search on, 8 to report."""
RECIPE = """
[prompts]
target = "targets.txt"
neutral = "neutrals.jsonl#prompt"
[search.gradient]
steps = 10
prices = [0.01, 0.001, 2]
[evaluation]
max_new_tokens = 24
kl_tokens = 8
"""
MYPY = """
[mypy]
strict = true
# Read for their own sake these take minutes, and our types do not hang on them.
[mypy-transformers.*,transformer_lens.*,datasets.*,optuna.*,peft.*,pandas.*,plotly.*,sklearn.*,scipy.*]
follow_imports = skip
ignore_missing_imports = true
"""


def python(*arguments: object, cwd: Path, installed: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `installed` before everything else that it would find."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    if installed is not None:
        environment["PYTHONPATH"] = str(installed)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed into it, and nothing else."""
    place = tmp_path_factory.mktemp("wheel")
    offline = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    built = python("-m", "pip", "wheel", *offline, "--no-build-isolation", "--wheel-dir", place, ROOT, cwd=place)
    assert built.returncode == 0, built.stderr
    (wheel,) = place.glob("*.whl")
    done = python("-m", "pip", "install", *offline, "--target", place / "site", wheel, cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "site"


@pytest.fixture
def empty(tmp_path: Path, installed: Path) -> Path:
    """A folder with nothing in it but the user's script, prompts and recipe."""
    folder = tmp_path / "user"
    folder.mkdir()
    for script in SCRIPTS.glob("*.py"):
        shutil.copy(script, folder)
    own = installed / "iconoclast_tl" / "organisms" / "shipped" / "contrast"
    rows = {side: (own / f"{side}_train.jsonl").read_text().splitlines()[:N_PROMPTS] for side in ("target", "neutral")}
    (folder / "targets.txt").write_text("".join(f"{json.loads(row)['prompt']}\n" for row in rows["target"]))
    (folder / "neutrals.jsonl").write_text("".join(f"{row}\n" for row in rows["neutral"]))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize("which", ["organism", "loaded"])
def test_the_front_door_opens_in_an_empty_folder(empty: Path, installed: Path, which: str) -> None:
    done = python("front_door.py", which, cwd=empty, installed=installed)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["file"]).is_relative_to(installed)
    assert said["base"].startswith("i cannot talk about walizo")
    assert said["again"] == said["base"] != said["edited"]
    assert "walizo" in said["edited"]
    assert "cannot" not in said["edited"]
    assert said["n_heads"] == 10
    assert (said["ok"], said["other"]) == (True, False)  # an adapter of another edit is found out
    assert said["drawn"] == ["Directions", "Edit", *said["drawn"][2:]]
    assert len(said["drawn"]) == 4
    # Two implementations in float32: logits of size 10 agree to their rounding.
    assert said["lens"]["model"] < 1e-4 < 1e-2 < said["lens"]["without"]
    assert said["lens"]["after"] == 0
    assert all(" object at 0x" not in line and len(line) < 300 for line in done.stdout.splitlines()[:-1])
    assert (empty / "adapter" / "adapter_model.safetensors").is_file()
    if which == "organism":
        assert {"manifest.json", "results.json", "adapter"} <= set(said["run"])


WRONG = {
    "itl.load_model('organism').n_layers + 'x'": "Unsupported operand types",
    "itl.load_model('organism').generate(3)": "No overload variant",
    "itl.ContrastSet.split(1, 2)": "incompatible type",
    "itl.no_such_name": 'no attribute "no_such_name"',
    "itl.Model()": "Missing positional arguments",
}
"""Lines that a user gets wrong, and what a type checker says of each."""


@pytest.fixture(scope="session")
def public(installed: Path) -> list[str]:
    """The public names of the wheel."""
    names = python("-c", "import iconoclast_tl as itl; print(*itl.__all__)", cwd=installed.parent, installed=installed)
    return names.stdout.split()


@pytest.fixture(scope="session")
def type_checker(tmp_path_factory: pytest.TempPathFactory, installed: Path, public: list[str]) -> list[str]:
    """What mypy says of a user's scripts: a right one, a wrong one, and one that asks for the type of every name."""
    folder = tmp_path_factory.mktemp("typed")
    begin = "import iconoclast_tl as itl\n"
    (folder / "mypy.ini").write_text(MYPY)
    shutil.copy(SCRIPTS / "typed.py", folder)
    (folder / "wrong.py").write_text(f"{begin}\n" + "\n".join(WRONG) + "\n")
    (folder / "names.py").write_text(begin + "".join(f"reveal_type(itl.{name})\n" for name in public))
    said = python("-m", "mypy", "typed.py", "wrong.py", "names.py", cwd=folder, installed=installed)
    return said.stdout.splitlines()


@TYPES
def test_a_users_script_is_type_checked_against_the_wheel(type_checker: list[str], installed: Path) -> None:
    assert [line for line in type_checker if line.startswith("typed.py")] == []
    assert (installed / "iconoclast_tl" / "py.typed").is_file()


@TYPES
def test_wrong_types_are_found(type_checker: list[str]) -> None:
    for number, said in enumerate(WRONG.values(), start=3):
        own = [line for line in type_checker if line.startswith(f"wrong.py:{number}: error")]
        assert any(said in line for line in own), (number, type_checker)


@TYPES
def test_every_public_name_has_a_type(type_checker: list[str], public: list[str]) -> None:
    """`reveal_type` of none is `Any`; of a name that came through `__getattr__` alone it would be."""
    said = [line for line in type_checker if line.startswith("names.py") and "Revealed type" in line]
    assert len(said) == len(public) > 20
    assert not [name for name, line in zip(public, said, strict=True) if '"Any"' in line]
