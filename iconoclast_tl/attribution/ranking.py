"""The parts that rank first: heads by a method of attribution, neurons by what they write along a direction."""

from __future__ import annotations

from collections.abc import Collection

from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.architecture.parts import neurons
from iconoclast_tl.architecture.reading import read_along
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.attribution.config import MethodName
from iconoclast_tl.attribution.cumulative import HEADS
from iconoclast_tl.attribution.parts import Part, model_parts
from iconoclast_tl.directions.geometry import normalize
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model


def top_neurons(model: Model, acts: Activations, direction: Float[Tensor, "d_model"], k: int) -> list[str]:
    """The k neurons that write most along a direction, target minus neutral prompts, as `layer.neuron`.

    (vᵀW)_n · (mean of neuron n over target train prompts − over neutral ones). The means are those of `acts`: the model
    is not run. Raises `UserError` where neurons cannot be told apart, and where there are fewer than k.
    """
    there = neurons(model.hf)
    target, neutral = (reads.get("mlp_out") for reads in (acts.target_reads, acts.neutral_reads))
    if target is None or neutral is None or len(there) != model.n_layers:
        raise UserError(f"{type(model.hf).__name__} has no neurons that can be told apart", mend="pass --profile free")
    ranked = []
    for layer, more in enumerate(target - neutral):
        gains = model.gains.get("mlp_out")
        seen = direction if gains is None else normalize(gains[layer] * direction)
        read = read_along(model.sites[Site(layer, "mlp_out")].module, seen[None]).weight[0]
        ranked += [(value, layer, neuron) for neuron, value in enumerate((read.double().cpu() * more).tolist())]
    if k > len(ranked):
        raise UserError("the model has fewer neurons", got=f"the first {k}", want=f"at most {len(ranked)}")
    return [f"{layer}.{neuron}" for _, layer, neuron in sorted(ranked, reverse=True)[:k]]


def require_ranking(
    methods: Collection[MethodName], model: Model, k: int | None, by: str | None, only: Collection[Part] | None = None
) -> None:
    """Raise `UserError`, before anything is computed, where the first k heads by a method cannot be told.

    methods: those that will be used. by: the one that ranks; None: any. only: the parts to attribute to; None: all.
    """
    known = [*methods, *(["interchange-back"] if "interchange" in methods else [])]
    if by is not None and by not in known:
        raise UserError("heads cannot be ranked by a method that is not used", got=by, want=", ".join(known))
    parts = model_parts(model.hf) if only is None else only
    n_heads = sum(part.component in HEADS for part in parts)
    if k is not None and k > n_heads:
        raise UserError("there are fewer heads", got=f"the first {k}", want=f"at most {n_heads}")
