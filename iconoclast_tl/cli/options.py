"""The options that every command shares, and the settings that they mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

ModelOption = Annotated[
    str | None,
    typer.Option(help="Hub id, folder or FILE.gguf (on the hub: owner/name:FILE.gguf); default: the shipped organism."),
]
TargetOption = Annotated[
    str | None,
    typer.Option(help="Prompts that call up the behaviour: FILE, FOLDER or owner/name@split[#column]."),
]
NeutralOption = Annotated[str | None, typer.Option(help="Prompts that do not, named the same way.")]
TargetValOption = Annotated[str | None, typer.Option(help="Separate target prompts for the search.")]
TargetTestOption = Annotated[str | None, typer.Option(help="Separate target prompts for the report.")]
NeutralValOption = Annotated[str | None, typer.Option(help="Separate neutral prompts for the search.")]
NeutralTestOption = Annotated[str | None, typer.Option(help="Separate neutral prompts for the report.")]
BorderlineOption = Annotated[str | None, typer.Option(help="Neutral prompts that look like targets; reported only.")]
RawOption = Annotated[
    bool | None, typer.Option("--raw-prompts", help="No chat template: put prompts to the model as they are.")
]
RecipeOption = Annotated[Path | None, typer.Option(help="Settings from a TOML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting, e.g. search.n_trials=60. Repeatable.", metavar="KEY=VALUE"),
]
OutOption = Annotated[Path | None, typer.Option(help="The run folder; default: runs/ and the model's name.")]
SeedOption = Annotated[int | None, typer.Option(help="Fixes splits and search.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")]
MethodOption = Annotated[
    str | None, typer.Option("--search", help="gradient (default), tpe, outer, or one of a --plugin.")
]
GoalOption = Annotated[str | None, typer.Option(help="suppress (default) or strengthen.")]
TrialsOption = Annotated[
    int | None, typer.Option(help="Trials of tpe or outer; a continued search counts its earlier ones.")
]
AttentionOnlyOption = Annotated[
    bool | None, typer.Option("--attention-only", help="Edit what attention writes, and leave the MLPs alone.")
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(help="Your own parts: a .py file or a module. Runs its code. Repeatable.", metavar="FILE_OR_MODULE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

SETTING_OF = {
    "model": "model.name",
    "device": "model.device",
    "dtype": "model.dtype",
    "target": "prompts.target",
    "neutral": "prompts.neutral",
    "target_val": "prompts.target_val",
    "target_test": "prompts.target_test",
    "neutral_val": "prompts.neutral_val",
    "neutral_test": "prompts.neutral_test",
    "borderline": "prompts.borderline",
    "raw_prompts": "prompts.raw_prompts",
    "attention_only": "edit.attention_only",
    "seed": "seed",
}
"""Options that are short names of settings."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """The shared options, as given; None where one was not."""

    model: ModelOption = None
    target: TargetOption = None
    neutral: NeutralOption = None
    target_val: TargetValOption = None
    target_test: TargetTestOption = None
    neutral_val: NeutralValOption = None
    neutral_test: NeutralTestOption = None
    borderline: BorderlineOption = None
    raw_prompts: RawOption = None
    recipe: RecipeOption = None
    set_: SetOption = None
    out: OutOption = None
    seed: SeedOption = None
    device: DeviceOption = None
    dtype: DtypeOption = None
    attention_only: AttentionOnlyOption = None
    plugin: PluginOption = None
    json: JsonOption = False

    def settings(self, **more: Any) -> dict[str, Any]:
        """Nested settings of what was given: `--set` first, then named options, then `more` (key with `__` for a
        dot).
        """
        from iconoclast_tl.stages.settings import merge, nest, parse_assignments

        nested = parse_assignments(self.set_ or [])
        named = {SETTING_OF[name]: getattr(self, name) for name in SETTING_OF}
        named |= {key.replace("__", "."): value for key, value in more.items()}
        for key, value in named.items():
            if value is not None:
                nested = merge(nested, nest(key, value))
        return nested

    def load_plugins(self) -> None:
        """Import what `--plugin` and ICONOCLAST_TL_PLUGINS name; `UserError` for what cannot be."""
        from iconoclast_tl.foundation.plugins import load_plugins, named_in_environment

        named = [*named_in_environment(), *(self.plugin or [])]
        if named:
            from iconoclast_tl.cli.console import quieten_libraries

            quieten_libraries()  # a plugin imports them
            load_plugins(named)

    def folder(self) -> Path:
        """The run folder: `--out`, or runs/ and the name of the model, wherever that is set."""
        if self.out is not None:
            return self.out
        from iconoclast_tl.models.source import short_name
        from iconoclast_tl.stages.settings import effective_settings

        model = effective_settings(self.settings(), self.recipe).settings.model.name
        return Path("runs") / short_name(model)


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command whose first parameter is `common: Common` the shared options behind its own."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    hints = get_type_hints(Common, include_extras=True)
    shared = [
        inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=hints[item.name])
        for item in fields(Common)
    ]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    def wrapper(**given: Any) -> None:
        common = Common(**{item.name: given.pop(item.name) for item in fields(Common)})
        common.load_plugins()
        command(common, **given)

    wrapper.__doc__ = command.__doc__
    wrapper.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    return wrapper
