"""Warm start: the first trials of a kernel study, from what others' searches ended with on models of the same family.

A profile says in shares of the depth where a kernel peaks and how far it reaches, how strong the attention's is and how
strong the MLPs', and where the one direction is taken; it is the median of what is published of its family
(`search.published`). A family is recognised by `config.model_type`, which the architecture fixes, not by a name.
Of families of which nothing was found (Phi, OLMo, gpt-oss and others) the general profile is taken, the median of all
that is published; mixtures of experts take their family's, which is of dense models. Two trials come of a profile: one
direction for all layers, and each layer's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, get_args

from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.search.objective import Goal
from iconoclast_tl.search.published import PUBLISHED, Published
from iconoclast_tl.search.space import Choices, DirectionScope, KernelSpace, point_at, suggest

MODEL_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "llama": ("llama", "mllama_text_model"),
    "qwen": (
        *("qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text"),
        *("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text"),
    ),
    "gemma": ("gemma", "gemma2", "gemma3", "gemma3_text"),
    "mistral": ("mistral", "ministral", "mixtral"),
    "granite": ("granite", "granitemoe"),
}
"""What text models of a family call themselves in their configurations."""


@dataclass(frozen=True)
class Shape:
    """A component's kernel, whatever the depth."""

    weight: float
    """Peak λ; towards less of the behaviour."""
    position: float
    """Of the peak, as a share of L−1."""
    floor: float
    """As a share of the peak."""
    reach: float
    """As a share of L−1."""


@dataclass(frozen=True)
class StartProfile:
    """Where a search may start."""

    shapes: Mapping[Component, Shape]
    point: float
    """Where the one direction is taken, as a share of the way from residual point 1 to the last."""
    scope: DirectionScope
    """What most of those that were published took; tried first."""

    @property
    def attention_to_mlp(self) -> float:
        """Peak λ of attention over that of MLPs."""
        return self.shapes["attn_out"].weight / self.shapes["mlp_out"].weight


@dataclass(frozen=True)
class WarmStart:
    """The profile of a model, and how it was found."""

    model_type: str
    family: str | None
    """None where there is no profile of the model's type."""
    profile: StartProfile

    def __str__(self) -> str:
        """Such as `gemma profile`."""
        if self.family is None:
            return f"no profile of model type {self.model_type}: the general one"
        return f"{self.family} profile"


def median_profile(records: Sequence[Published]) -> StartProfile:
    """The median of every number, each by itself; one direction where as many had one as did not.

    Raises `StatisticsError` where none took one direction: then nothing says which.
    """
    shapes = {component: [_shape(record, component) for record in records] for component in WRITERS}
    points = [one.share for one in records if one.share is not None]
    return StartProfile(
        {
            component: Shape(*(median(getattr(one, name) for one in found) for name in Shape.__dataclass_fields__))
            for component, found in shapes.items()
        },
        median(points),
        "global" if 2 * len(points) >= len(records) else "per layer",
    )


def _shape(record: Published, component: Component) -> Shape:
    kernel, last = getattr(record, component), record.n_layers - 1
    return Shape(
        weight=kernel.max_weight,
        position=kernel.max_weight_position / last,
        floor=kernel.min_weight / kernel.max_weight,
        reach=kernel.min_weight_distance / last,
    )


PROFILES: Final[Mapping[str, StartProfile]] = {family: median_profile(found) for family, found in PUBLISHED.items()}
GENERAL: Final = median_profile([record for found in PUBLISHED.values() for record in found])


def warm_start(config: Any) -> WarmStart:
    """The profile for a model of this configuration (transformers').

    Of a model of several modalities the text model counts first: its blocks are what is edited.
    """
    kinds = (config.get_text_config().model_type, config.model_type)
    for kind in kinds:
        for family, known in MODEL_TYPES.items():
            if kind in known:
                return WarmStart(kind, family, PROFILES[family])
    return WarmStart(kinds[0], None, GENERAL)


def first_trials(profile: StartProfile, space: KernelSpace, goal: Goal, n_layers: int) -> list[Choices]:
    """The choices of the trials that a profile means on a model of this depth, the likelier scope first.

    What lies outside of the space is moved to its edge, so one of the two is left where the space has one scope only.
    Under the goal `strengthen` peaks are below zero, as in `KernelSpace.for_goal`.
    """
    last = n_layers - 1
    wanted: dict[str, Any] = {"direction_point": point_at(profile.point, n_layers)}
    for component, shape in profile.shapes.items():
        wanted[f"{component}.max_weight"] = shape.weight if goal == "suppress" else -shape.weight
        wanted[f"{component}.max_weight_position"] = shape.position * last
        wanted[f"{component}.min_weight"] = shape.floor
        wanted[f"{component}.min_weight_distance"] = shape.reach * last
    scopes = sorted(get_args(DirectionScope), key=lambda scope: scope != profile.scope)
    found: list[Choices] = []
    for scope in scopes:
        trial = suggest(_Nearest(wanted | {"direction_scope": scope}), space, n_layers)
        if trial not in found:
            found.append(trial)
    return found


class _Nearest:
    """A trial that answers with what is wanted, or the nearest to it that may be chosen."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self._wanted = wanted

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(min(max(self._wanted[name], low), high))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._wanted[name] if self._wanted[name] in choices else choices[0]
