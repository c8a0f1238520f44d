"""Writers: the matrices through which a layer writes into the residual stream, wherever an architecture keeps them.

A dense block has one: a Linear, or GPT-2's Conv1D, which is stored the other way round. A mixture of experts has one
for every routed expert, fused into a parameter (expert, …, …), and perhaps shared experts beside them. What a mixture
writes is a weighted sum of what its experts write, so that an edit of the sum is the same edit of every one of them,
and the router is left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.architecture.discovery import discover
from iconoclast_tl.architecture.layers import decoder_layer_list
from iconoclast_tl.architecture.names import child, misnamed, names_of
from iconoclast_tl.architecture.offloading import is_offloaded, present
from iconoclast_tl.architecture.sites import WRITERS, Component, Site
from iconoclast_tl.foundation.errors import UserError

_BLOCKS: Final[Mapping[Component, tuple[str, ...]]] = {
    "attn_out": ("self_attn", "self_attention", "attention", "attn"),
    "mlp_out": ("mlp", "block_sparse_moe", "feed_forward", "moe"),
}
"""What a layer's attention and MLP are called."""
_NAMES: Final[Mapping[Component, tuple[str, ...]]] = {
    "attn_out": ("o_proj", "out_proj", "dense", "c_proj"),
    "mlp_out": ("down_proj", "w2", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "output_linear"),
}
"""What the matrix that writes is called in them."""
_EXPERT_COUNTS: Final = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What a configuration calls the number of routed experts of a layer."""
_ROUTERS: Final = ("gate", "router")
"""What chooses among experts is called."""
_DISCOVERED: Final[WeakKeyDictionary[Any, Mapping[Site, Writer]]] = WeakKeyDictionary()
"""What was found by running a model, by the model."""


@dataclass(frozen=True)
class Matrix:
    """One parameter that writes into the stream."""

    module: str
    """Path of the module that holds it."""
    parameter: str = "weight"
    bias: str | None = None
    transposed: bool = False
    """Whether it is stored as (…, d_in, d_model) and not as (…, d_model, d_in)."""
    n_experts: int | None = None
    """How many matrices are fused in it; None for a matrix by itself."""

    @property
    def path(self) -> str:
        """Its name among the model's parameters."""
        return f"{self.module}.{self.parameter}"

    @property
    def bias_path(self) -> str | None:
        """The name of its bias, if it has one."""
        return f"{self.module}.{self.bias}" if self.bias else None

    def read(
        self, hf: nn.Module
    ) -> tuple[Float[Tensor, "expert d_model d_in"], Float[Tensor, "expert d_model"] | None]:
        """W and b of every expert, of one where they are not fused; `UserError` where weights are quantised."""
        module = hf.get_submodule(self.module)
        if self.n_experts is None:
            weight, bias = dense_weight(module)
            return weight[None], bias[None] if bias is not None else None
        with present(module):
            weight = _floating(getattr(module, self.parameter))
            return weight.mT if self.transposed else weight, getattr(module, self.bias) if self.bias else None

    def stored(
        self, weight: Float[Tensor, "expert d_model d_in"], bias: Float[Tensor, "expert d_model"] | None
    ) -> dict[str, Tensor]:
        """Entries of a state dict that hold W and b, by `path` and `<module>.bias`."""
        kept = (weight.mT if self.transposed else weight).contiguous()
        name = self.bias_path or f"{self.module}.bias"
        if self.n_experts is None:
            return {self.path: kept[0], **({} if bias is None else {name: bias[0]})}
        return {self.path: kept, **({} if bias is None else {name: bias})}


@dataclass(frozen=True)
class Writer:
    """What writes at one site."""

    module: str
    """Path of the module whose output is what is written: the linear itself, or the mixture of experts."""
    matrices: tuple[Matrix, ...]

    @property
    def is_dense(self) -> bool:
        """Whether one linear module is all of it."""
        return len(self.matrices) == 1 and self.matrices[0].n_experts is None

    @property
    def experts(self) -> str | None:
        """Path of the module in which routed experts are fused, called with (states, chosen experts, their weights)."""
        found = {
            matrix.module for matrix in self.matrices if matrix.n_experts is not None and matrix.parameter != "weight"
        }
        return next(iter(found)) if len(found) == 1 else None

    @property
    def n_experts(self) -> int | None:
        """Routed experts that are fused; None for a dense block."""
        return next((matrix.n_experts for matrix in self.matrices if matrix.n_experts is not None), None)

    @property
    def n_matrices(self) -> int:
        """Matrices that an edit of the site changes, every expert counted."""
        return sum(matrix.n_experts or 1 for matrix in self.matrices)


def known_writers(hf: Any) -> dict[Site, Writer]:
    """The writer of every site where all that writes is found."""
    return {site: found for site, found in _look(hf, WRITERS) if isinstance(found, Writer)}


def require_writers(hf: Any, components: Collection[Component] = WRITERS) -> dict[Site, Writer]:
    """The writer of every site of these components.

    Raises `UserError` where a layer has none that is known, or not all of its experts are found: silently editing the
    rest would make every number about the edit wrong.
    """
    writers = {}
    for site, found in _look(hf, components):
        if isinstance(found, UserError):
            raise found
        writers[site] = found
    return writers


def _look(hf: Any, components: Collection[Component]) -> Iterator[tuple[Site, Writer | UserError]]:
    """At every site what writes there, by name or else by what it computes, or what to say where it is not found."""
    prefix, layers = decoder_layer_list(hf)
    for index, layer in enumerate(layers):
        for component in WRITERS:
            if component in components:
                site, found = Site(index, component), _find_writer(hf, layer, f"{prefix}.{index}", component)
                if isinstance(found, UserError) and not _is_named(hf, component):
                    found = _discovered(hf).get(site, found)
                yield site, found


def _is_named(hf: Any, component: Component) -> bool:
    """Whether a user says what writes there: if that is not there, it is not looked for elsewhere."""
    registered = names_of(hf)
    return bool(registered.block(component) or registered.matrix(component))


def discovered_writers(hf: Any) -> dict[str, str]:
    """Paths of writers that are not known by name, by site: for a skeleton without weights, which cannot be asked."""
    writers = known_writers(hf)
    found = _DISCOVERED.get(hf, {})  # looked for by the line before, where names did not do
    return {str(site): writer.module for site, writer in writers.items() if writer is found.get(site)}


def know_writers(hf: Any, paths: Mapping[str, str]) -> None:
    """Take what `discovered_writers` said of the same model with its weights."""
    _DISCOVERED[hf] = {
        Site(int(site.partition(".")[0]), component): Writer(path, (_linear(hf.get_submodule(path), path),))
        for site, path in paths.items()
        for component in WRITERS
        if site.endswith(component)
    }


def _discovered(hf: Any) -> Mapping[Site, Writer]:
    """Writers under names that are not known, where the model can be run; looked for once."""
    if hf not in _DISCOVERED:
        runs = is_offloaded(hf) or not any(parameter.is_meta for parameter in hf.parameters())
        paths = discover(hf, _is_linear) if runs else {}
        _DISCOVERED[hf] = {site: Writer(path, (_linear(hf.get_submodule(path), path),)) for site, path in paths.items()}
    return _DISCOVERED[hf]


def dense_weight(module: nn.Module) -> tuple[Float[Tensor, "d_model d_in"], Float[Tensor, "d_model"] | None]:
    """W and b of a linear module; `UserError` where the weight is quantised and cannot be read exactly."""
    with present(module):
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__} has no weight: row normalisation and folding need the linear module")
    weight = _floating(weight)
    return weight.T if is_conv1d(module) else weight, bias


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is GPT-2's linear, whose weight is (d_in, d_model)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _floating(weight: Tensor) -> Tensor:
    if weight.is_floating_point():
        return weight
    raise UserError(
        "the weights are quantised",
        want="full-precision weights for folding and for row normalisation",
        mend="pass --set edit.row_normalization=none for previews, --set model.quantization=none for the rest",
    )


def _find_writer(hf: Any, layer: nn.Module, path: str, component: Component) -> Writer | UserError:
    registered = names_of(hf)
    blocks = registered.block(component) or _BLOCKS[component]
    names = registered.matrix(component) or _NAMES[component]
    name = next((name for name in blocks if child(layer, name) is not None), None)
    block, place = (layer, path) if name is None else (layer.get_submodule(name), f"{path}.{name}")
    matrices = () if name is None else tuple(_matrices(block, place, names))
    if error := _missing_experts(hf, block, matrices):
        return error
    if not matrices and _is_named(hf, component):
        what = f"block that writes {component}" if name is None else f"linear that writes {component}"
        return misnamed(hf, place, what, blocks if name is None else names, block)
    if not matrices:
        return UserError(
            f"{path} of {type(hf).__name__} has no linear that is known to write {component}",
            got=", ".join(name for name, _ in block.named_children()),
            want=f"one of {', '.join(_NAMES[component])} in one of {', '.join(_BLOCKS[component])}",
            mend="pass --attention-only to leave it alone" if component == "mlp_out" else None,
        )
    dense = len(matrices) == 1 and matrices[0].n_experts is None
    return Writer(matrices[0].module if dense else place, matrices)


def _matrices(block: nn.Module, path: str, names: tuple[str, ...]) -> Iterator[Matrix]:
    for inner, module in block.named_modules(prefix=path):
        is_named = any(f".{inner}".endswith(f".{name}") for name in names)
        if _is_linear(module) and is_named:
            yield _linear(module, inner)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim != 3:
                continue
            # Without this mark nothing tells which way round the experts are stored (Llama 4).
            if name in names and hasattr(module, "is_transposed"):
                bias = f"{name}_bias" if f"{name}_bias" in module._parameters else None
                yield Matrix(inner, name, bias, bool(module.is_transposed), len(parameter))
            elif name == "weight" and is_named:
                yield Matrix(inner, name, None, False, len(parameter))


def _linear(module: nn.Module, path: str) -> Matrix:
    return Matrix(path, "weight", "bias" if getattr(module, "bias", None) is not None else None, is_conv1d(module))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _missing_experts(hf: Any, block: nn.Module, matrices: tuple[Matrix, ...]) -> UserError | None:
    if not any(name in block._modules for name in _ROUTERS):
        return None
    config = hf.config.get_text_config()
    wanted = next((getattr(config, name) for name in _EXPERT_COUNTS if getattr(config, name, None)), None)
    routed = sum(matrix.n_experts or int(".experts." in matrix.module) for matrix in matrices)
    if routed == wanted:
        return None
    return UserError(
        f"the experts of {type(block).__name__} are not all found",
        got=f"{routed} that write into the stream",
        want=f"{wanted} routed ones",
        mend="pass --attention-only to leave them alone",
    )
