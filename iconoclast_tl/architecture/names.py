"""What an architecture that is not known calls its parts, as its user registers it: used first where it matches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from torch import nn

from iconoclast_tl.architecture.sites import Component
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.registry import Registry

Names = str | tuple[str, ...]
"""One name, or several of which each layer has one."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureNames:
    """Names of an architecture's parts; None: found as in every other architecture."""

    layers: str | None = None
    """Path of the list of decoder layers in the model, such as `model.layers`."""
    attention: Names | None = None
    """Path of the attention block in a layer, such as `self_attn`."""
    attn_out: Names | None = None
    """Path in that block of the linear that writes into the stream, such as `o_proj`."""
    mlp: Names | None = None
    """Path of the MLP in a layer."""
    mlp_out: Names | None = None
    """Path in it of the linear, or of the experts' parameter, that writes into the stream."""
    attention_post_norm: Names | None = None
    """Path in a layer of the norm between what attention writes and the stream."""
    mlp_post_norm: Names | None = None
    """The same of the MLP."""
    final_norm: str | None = None
    """Path in the model of the norm before the unembedding."""

    def block(self, component: Component) -> tuple[str, ...]:
        """Names of the block that writes a component; empty where none are registered."""
        return _several(self.attention if component == "attn_out" else self.mlp)

    def matrix(self, component: Component) -> tuple[str, ...]:
        """Names of the matrix in it; empty where none are registered."""
        return _several(self.attn_out if component == "attn_out" else self.mlp_out)

    def post_norm(self, component: Component) -> tuple[str, ...]:
        """Names of the norm after it; empty where none are registered."""
        return _several(self.attention_post_norm if component == "attn_out" else self.mlp_post_norm)


ARCHITECTURES: Final = Registry[ArchitectureNames]("architecture", "iconoclast_tl.architectures", {})
NOTHING: Final = ArchitectureNames()


def register_architecture(name: str, names: ArchitectureNames | None = None, **given: Names) -> ArchitectureNames:
    """Register what an architecture calls its parts, by the class name of its models or by their `model_type`.

        itl.register_architecture(
            "RiverForCausalLM", layers="river.blocks", attention="mixer", attn_out="out", mlp_out="down"
        )

    given: fields of `ArchitectureNames`; or all of them at once as `names`. What is not given is found as elsewhere. Of
    a linear that stands in the layer itself, give its name as block and as matrix. Whether the names are right is seen
    when the model is edited: whatever a layer writes by another module, or through a norm that is not named, is told.

    Raises `UserError` for a name that is taken, and for a field that there is not.
    """
    if unknown := sorted(given.keys() - asdict(NOTHING).keys()):
        raise UserError(
            f"an architecture has no {', '.join(unknown)}", got=name, want=f"some of {', '.join(asdict(NOTHING))}"
        )
    made = ArchitectureNames(**given) if names is None else names  # type: ignore[arg-type]
    ARCHITECTURES.add(name, made)
    return made


def names_of(hf: Any) -> ArchitectureNames:
    """What is registered for a Hugging Face model: by its class first, else by its `model_type`."""
    kinds = (type(hf).__name__, str(getattr(getattr(hf, "config", None), "model_type", "")))
    return next((ARCHITECTURES[kind] for kind in kinds if kind in ARCHITECTURES), NOTHING)


def is_registered(hf: Any) -> bool:
    """Whether anything is."""
    return names_of(hf) is not NOTHING


def child(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, if there is one."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def misnamed(hf: Any, place: str, what: str, names: tuple[str, ...], there: nn.Module) -> UserError:
    """What to say where a registered name is of nothing. there: where it was looked for."""
    return UserError(
        f"{place} of {type(hf).__name__} has no {what} by the registered name",
        got=", ".join(name for name, _ in there.named_children()) or "no modules",
        want=" or ".join(names),
        mend="correct what itl.register_architecture registers",
    )


def _several(names: Names | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else names
