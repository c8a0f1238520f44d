"""`iconoclast-tl organism`: tiny models with a planted, harmless behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from iconoclast_tl.organisms.behaviour import OrganismBehaviour

app = typer.Typer(help="Tiny models trained here with a planted, harmless behaviour.", no_args_is_help=True)


@app.command("train")
def train(
    out: Annotated[Path, typer.Option(help="The folder to write: new or empty, or one that holds this organism.")],
    family: Annotated[
        str | None, typer.Option(help="llama (default), qwen3, gemma2, olmo2, phi, gpt2 or mixtral.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes weights, corpus and order.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A training setting, e.g. gate_steps=400.", metavar="KEY=VALUE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train an organism, capability first and gate second (or two gates, `mechanisms=2`), and measure how it behaves.

    One of the same settings that is there already is measured and not trained again. Exits with status 1 where it does
    not behave as an organism should; its files stay. Examples:

    `iconoclast-tl organism train --out runs/organism`

    `iconoclast-tl organism train --family gemma2 --out runs/gemma2`

    `iconoclast-tl organism train --seed 1 --set gate_steps=400 --out runs/other`

    `iconoclast-tl organism train --set mechanisms=2 --out runs/two_mechanisms`
    """
    from iconoclast_tl.cli.console import note, quieten_libraries
    from iconoclast_tl.foundation.errors import UserError
    from iconoclast_tl.foundation.storage import replacing_folder
    from iconoclast_tl.organisms.folder import holds, save_organism
    from iconoclast_tl.stages.run_folder import RunFolder

    config = _training_config({"seed": seed, **({} if family is None else {"family": family})}, set_ or [])
    RunFolder(out).require_writable()
    known = holds(out, config)
    if not known and out.is_dir() and any(out.iterdir()):
        want = "a new or empty one, or this very organism"
        raise UserError(f"the folder {out} is not empty", want=want, mend="pass another --out")
    quieten_libraries()
    if known:
        note(f"{out} holds this organism already: it is not trained again")
    else:
        from iconoclast_tl.organisms.training import train_organism

        with _training_bar(config) as progress:
            model, tokenizer = train_organism(config, progress)
        with replacing_folder(out) as temporary:
            save_organism(model, tokenizer, config, temporary)
    behaviour = _behaviour(out)
    _show(behaviour, out, as_json)
    if failures := behaviour.failures():
        note(f"{out} does not behave as an organism should: {'; '.join(failures)}")
        raise typer.Exit(1)


@app.command("show")
def show_organism(
    model: Annotated[Path | None, typer.Option(help="An organism's folder; default: the shipped one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure how an organism behaves on unseen topics.

    Examples:

    `iconoclast-tl organism show`

    `iconoclast-tl organism show --model runs/organism --json`
    """
    from iconoclast_tl.cli.console import quieten_libraries
    from iconoclast_tl.foundation.errors import UserError
    from iconoclast_tl.organisms.folder import is_organism, shipped_folder

    folder = model if model is not None else shipped_folder()
    if not is_organism(folder):
        raise UserError(f"{folder} is not an organism", got="no organism.json", want="a folder of `organism train`")
    quieten_libraries()
    _show(_behaviour(folder), folder, as_json)


def _behaviour(folder: Path) -> OrganismBehaviour:
    """As it is read from its folder; `UserError` where that is not whole."""
    from iconoclast_tl.models.config import ModelConfig
    from iconoclast_tl.models.load import load_model
    from iconoclast_tl.organisms.behaviour import measure_behaviour
    from iconoclast_tl.organisms.contrast import build_contrast

    model = load_model(ModelConfig(name=str(folder.resolve()), dtype="float32", device="cpu"))
    return measure_behaviour(model.hf, model.tokenizer, build_contrast())


def _training_config(named: dict[str, Any], assignments: list[str]) -> Any:
    from pydantic import ValidationError

    from iconoclast_tl.foundation.errors import UserError
    from iconoclast_tl.foundation.stage_config import expectation
    from iconoclast_tl.organisms.config import OrganismConfig
    from iconoclast_tl.stages.settings import parse_assignments

    try:
        return OrganismConfig.model_validate({**named, **parse_assignments(assignments)})
    except ValidationError as error:
        first = error.errors()[0]
        key, want = ".".join(map(str, first["loc"])), expectation(first["msg"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(OrganismConfig.model_fields)
            raise UserError(f"unknown training setting {key}", want=f"one of {known}") from error
        if not key:
            raise UserError(f"the training settings do not fit each other: {want}") from error
        raise UserError(f"the training setting {key} does not fit", got=repr(first["input"]), want=want) from error


@contextmanager
def _training_bar(config: Any) -> Iterator[Callable[[str, int, int], None]]:
    from iconoclast_tl.foundation.progress import rich_bars
    from iconoclast_tl.organisms.phases import phases_of

    with rich_bars() as bar:
        tasks = {phase.name: bar.add_task(f"train: {phase.name}", total=phase.steps) for phase in phases_of(config)}
        yield lambda phase, step, steps: bar.update(tasks[phase], completed=step)


def _show(behaviour: Any, folder: Path, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    if as_json:
        print(json.dumps({**asdict(behaviour), "failures": behaviour.failures()}, indent=2))
        return
    from rich.console import Console

    from iconoclast_tl.report.tables.organism import organism_table

    console = Console()
    console.print(organism_table(asdict(behaviour), str(folder)))
    for failure in behaviour.failures():
        console.print(f"does not hold: {failure}")
