"""`--help` answers at once, for every command, with an example."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.cli.conftest import Cli

NAMES = ("run", "collect", "directions", "preview", "search", "fold", "merge", "evaluate", "compare", "doctor")
COMMANDS = [
    *([name] for name in NAMES),
    ["organism", "train"],
    ["organism", "show"],
    ["config", "show"],
]
HEAVY = ["torch", "transformers", "optuna", "peft", "datasets", "transformer_lens", "pandas", "scipy"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_helps_with_an_example(cli: Cli, command: list[str]) -> None:
    done = cli(*command, "--help")
    assert done.code == 0
    assert "Examples" in done.out
    assert f"iconoclast-tl {' '.join(command)}" in done.out.split("Examples")[1]
    assert "--out" in done.out or command == ["organism", "show"]


def test_the_commands_are_all_there(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    for command in (*NAMES, "organism", "config"):
        assert f" {command} " in done.out
    assert cli("no-such-command").code == 2
    assert cli("run", "--no-such-option").code == 2


def test_help_imports_nothing_heavy() -> None:
    """Seen in the modules that the process holds when it ends."""
    code = (
        "import sys; sys.argv = ['iconoclast-tl', *sys.argv[1:]]\n"
        "from iconoclast_tl.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('modules', *sorted(sys.modules))"
    )

    def modules(*arguments: str) -> set[str]:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        return set(done.stdout.splitlines()[-1].split())

    assert "iconoclast_tl.cli" in modules("--help")
    assert not modules("--help") & set(HEAVY)
    assert not modules("preview", "--help") & set(HEAVY)
    assert "torch" in modules("config", "show")  # the negative control: a command that works imports what it needs


def test_help_takes_less_than_seven_tenths_of_a_second() -> None:
    code = "from iconoclast_tl.cli import main; main()"
    best = 60.0
    for _ in range(5):  # of the processor: what else the machine does is no matter
        start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True)
        best = min(best, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start)
    assert best < 0.7
