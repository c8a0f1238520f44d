"""Write the pages that follow from the code: settings, presets, command line, modules, public names.

`docs/conf.py` calls this before every build; `python -m scripts.reference FOLDER` writes them to look at. Nothing in
them is written by hand: a setting without a docstring or a command without help is an error.
"""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "iconoclast_tl"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "at least", "max_length": "at most"}


def write_reference(folder: Path) -> None:
    """Write every generated page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "settings.md": settings_page(),
        "presets.md": presets_page(),
        "command_line.md": command_line_page(),
        "modules.md": modules_page(),
        "public_names.md": public_names_page(),
    }
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # Sphinx goes by the time of change
            path.write_text(text, encoding="utf-8")


# Settings -------------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """A table of settings for every stage."""
    from iconoclast_tl.search.presets import PRESETS
    from iconoclast_tl.stages.settings import Settings, flatten

    preset = Settings.model_fields["search"].default.preset
    preset_says = flatten(PRESETS[preset])
    stages: dict[str, list[tuple[str, ...]]] = {}
    for key, kind, default, changeable, description in settings_rows(Settings):
        stage = key.split(".")[0] if "." in key else "every stage"
        name = f"`{key}`" if len(key) <= 30 else f"`{key.rpartition('.')[0]}.`<br>`{key.rpartition('.')[2]}`"
        if key in preset_says and shown(preset_says[key]) != default:
            default = f"{shown(preset_says[key])} by preset `{preset}`"
        stages.setdefault(stage, []).append((name, kind, default, changeable, description))
    parts = []
    for stage, rows in stages.items():
        parts.append(f"## {stage}\n\n{_about_stage(Settings, stage)}\n")
        parts.append(table(("setting", "type", "default", "may change", "meaning"), rows))
    return "\n".join(parts)


def settings_rows(config: type[Any], prefix: str = "", changeable: bool = False) -> Iterator[tuple[str, ...]]:
    """(dotted key, type, default, whether it may change in a continued folder, description) of every setting.

    Raises `ValueError` for a setting without a description.
    """
    from pydantic import BaseModel

    from iconoclast_tl.foundation.stage_config import is_changeable

    for name, field in config.model_fields.items():
        key, may = f"{prefix}{name}", changeable or is_changeable(config, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_rows(field.annotation, f"{key}.", may)
            continue
        if not field.description:
            raise ValueError(f"the setting {key} has no docstring")
        bounds = [
            f"{sign} {getattr(item, bound)}"
            for item in field.metadata
            for bound, sign in BOUNDS.items()
            if getattr(item, bound, None) is not None
        ]
        kind = ", ".join([type_name(field.annotation), *bounds])
        default = shown(field.get_default(call_default_factory=True))
        yield key, kind, default, "yes" if may else "no", " ".join(field.description.split())


def _about_stage(config: type[Any], stage: str) -> str:
    field = config.model_fields.get(stage)
    if field is None:
        return "Settings that belong to no single stage."
    return str(field.annotation.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def type_name(annotation: Any) -> str:
    """A type as a user would say it: `integer`, `text or null`, `"a" or "b"`."""
    origin, given = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(given[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in given)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(one) for one in given))
    if origin in (tuple, list):
        inner = [type_name(one) for one in given if one is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in given or origin is list else f"[{', '.join(inner)}]"
    if origin is dict:
        return f"table from {type_name(given[0])} to {type_name(given[1])}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def shown(value: Any) -> str:
    """A default as one would write it in TOML, or `null`."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(shown(item).strip('`') for item in value)}]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def presets_page() -> str:
    """What every preset changes of the defaults."""
    from iconoclast_tl.search.presets import PRESETS
    from iconoclast_tl.stages.settings import Settings, flatten

    defaults = flatten(Settings().model_dump(mode="json"))
    parts = []
    for name, values in PRESETS.items():
        rows = [
            (f"`{key}`", shown(defaults.get(key)), shown(value))
            for key, value in flatten(values).items()
            if value != defaults.get(key)
        ]
        parts.append(f"### {name}\n")
        parts.append(table(("setting", "default", "preset"), rows) if rows else "It changes nothing.\n")
    return "\n".join(parts)


# Command line ---------------------------------------------------------------------------------------------------------


def command_line_page() -> str:
    """Every command with its help, its examples and its own options; the shared options once."""
    from typer.main import get_command

    from iconoclast_tl.cli import app

    commands = dict(leaves(get_command(app)))
    shared = _shared_options(commands)
    parts = ["## Options that commands share\n", table(("option", "takes", "meaning"), list(shared.values()))]
    for name, command in commands.items():
        if not command.help:
            raise ValueError(f"the command {name} has no help")
        own = [row for row in option_rows(command) if row[0] not in shared]
        has_shared = len(own) < len(list(option_rows(command)))
        parts.append(f"## {name}\n\n{_paragraphs(command.help)}\n")
        if own:
            parts.append(table(("option", "takes", "meaning"), own))
        if has_shared:
            parts.append("It also takes the [shared options](#options-that-commands-share).\n")
    return "\n".join(parts)


def leaves(command: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`organism train`, command) of every command that does something."""
    for name, one in command.commands.items():
        if hasattr(one, "commands"):
            yield from leaves(one, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", one


def option_rows(command: Any) -> Iterator[tuple[str, str, str]]:
    """(names, what it takes, help) of a command's parameters."""
    for parameter in command.params:
        if parameter.name == "help":
            continue
        names = [*parameter.opts, *getattr(parameter, "secondary_opts", ())]
        if parameter.param_type_name == "argument":
            names = [parameter.metavar or parameter.name.upper()]
        flag = getattr(parameter, "is_flag", False)
        takes = "" if flag else str(parameter.metavar or type_name(parameter.type_descriptor.annotation))
        text = " ".join(str(getattr(parameter, "help", None) or "").split())
        yield ", ".join(f"`{name}`" for name in names), takes, text


def _shared_options(commands: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Those of `run` that most commands have, with the same meaning."""
    every = [set(option_rows(command)) for command in commands.values()]
    most = [row for row in option_rows(commands["run"]) if sum(row in rows for rows in every) > len(every) / 2]
    return {row[0]: row for row in most}


def _paragraphs(text: str) -> str:
    """Help as paragraphs; examples, which stand in backticks on lines of their own, as shell blocks."""
    paragraphs: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        line = " ".join(paragraph.split())
        whole = re.fullmatch(r"`([^`]+)`(?: \(([^()]+)\))?", line)
        if whole is None:
            paragraphs.append(line)
            continue
        example = whole[1] + (f"  # {whole[2]}" if whole[2] else "")
        if paragraphs and paragraphs[-1].endswith("\n```"):
            paragraphs[-1] = f"{paragraphs[-1].removesuffix('```')}{example}\n```"
        else:
            paragraphs.append(f"```sh\n{example}\n```")
    return "\n\n".join(paragraphs)


# Modules and public names ---------------------------------------------------------------------------------------------


def modules_page() -> str:
    """Every module of the package, room by room, with the first sentence of its docstring."""
    rooms: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if path.name != "__init__.py" and len(parts) > 1:
            rooms.setdefault(parts[0], []).append(("/".join(parts[1:]), first_sentence(path)))
    sections = []
    for room, modules in rooms.items():
        about = first_sentence(PACKAGE / room / "__init__.py")
        rows = [(f"`{name}`", text) for name, text in modules]
        sections.append(f"## {room}\n\n{about}\n\n{table(('module', 'what it is'), rows)}")
    return "\n".join(sections)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring; empty where it has none."""
    documented = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(documented.split("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) (?=[A-Z`])", paragraph)[0]


def public_names_page() -> str:
    """Directives of autodoc for every public name, by the room that it comes from."""
    import iconoclast_tl

    rooms: dict[str, list[str]] = {}
    for name in iconoclast_tl.__all__:
        thing = getattr(iconoclast_tl, name)
        module = getattr(thing, "__module__", "iconoclast_tl.other")
        rooms.setdefault(module.split(".")[1] if "." in module else "other", []).append(name)
    parts = []
    for room, names in sorted(rooms.items()):
        parts.append(f"## {room}\n")
        for name in names:
            thing = getattr(iconoclast_tl, name)
            is_class = isinstance(thing, type)
            kind = "autoclass" if is_class else "autofunction" if callable(thing) else "autodata"
            members = "   :members:\n   :undoc-members:\n   :exclude-members: model_config\n" if is_class else ""
            parts.append(f"```{{eval-rst}}\n.. {kind}:: iconoclast_tl.{name}\n{members}```\n")
    return "\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
