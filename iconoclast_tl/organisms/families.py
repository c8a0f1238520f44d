"""Families of organisms: the same size and training in other architectures.

Chosen for what differs between them: norms after the writers, experts, weights stored the other way round, biases,
parallel blocks, and a chat template without a system role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from iconoclast_tl.organisms.config import OrganismConfig

Family = Literal["llama", "qwen3", "gemma2", "olmo2", "phi", "gpt2", "mixtral"]
WITHOUT_SYSTEM_ROLE: Final[tuple[Family, ...]] = ("gemma2",)
"""Families whose chat template knows no system message, as Gemma's does not."""
N_EXPERTS = 4
EXPERTS_PER_TOKEN = 2


def model_config(config: OrganismConfig, ids: Mapping[str, int | None], vocabulary: int) -> PreTrainedConfig:
    """The configuration of a model of this family and size; `ids`: of the special tokens."""
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "max_position_embeddings": config.n_ctx,
        "tie_word_embeddings": True,
        "initializer_range": config.init_std,
        **ids,
    }
    return _BUILDERS[config.family](sizes, config)


def _plain(name: str, **more: Any) -> Callable[[dict[str, Any], OrganismConfig], PreTrainedConfig]:
    def build(sizes: dict[str, Any], config: OrganismConfig) -> PreTrainedConfig:
        import transformers

        built: PreTrainedConfig = getattr(transformers, f"{name}Config")(
            **{**sizes, **more}, architectures=[f"{name}ForCausalLM"]
        )
        return built

    return build


def _gemma2(sizes: dict[str, Any], config: OrganismConfig) -> PreTrainedConfig:
    from transformers import Gemma2Config

    head = config.d_model // config.n_heads
    return Gemma2Config(
        **sizes,
        head_dim=head,
        query_pre_attn_scalar=head,
        sliding_window=config.n_ctx,
        final_logit_softcapping=None,  # training unembeds by itself
        architectures=["Gemma2ForCausalLM"],
    )


def _qwen3(sizes: dict[str, Any], config: OrganismConfig) -> PreTrainedConfig:
    from transformers import Qwen3Config

    return Qwen3Config(**sizes, head_dim=config.d_model // config.n_heads, architectures=["Qwen3ForCausalLM"])


def _mixtral(sizes: dict[str, Any], config: OrganismConfig) -> PreTrainedConfig:
    from transformers import MixtralConfig

    # As many multiplications a token as a dense MLP of this width.
    width = config.d_mlp // EXPERTS_PER_TOKEN
    experts = {"num_local_experts": N_EXPERTS, "num_experts_per_tok": EXPERTS_PER_TOKEN}
    return MixtralConfig(
        **{**sizes, "intermediate_size": width}, **experts, sliding_window=None, architectures=["MixtralForCausalLM"]
    )


def _gpt2(sizes: dict[str, Any], config: OrganismConfig) -> PreTrainedConfig:
    from transformers import GPT2Config

    ids = {name: value for name, value in sizes.items() if name.endswith("token_id")}
    return GPT2Config(
        vocab_size=sizes["vocab_size"],
        n_embd=config.d_model,
        n_inner=config.d_mlp,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_positions=config.n_ctx,
        initializer_range=config.init_std,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        architectures=["GPT2LMHeadModel"],
        **ids,
    )


_BUILDERS: Final[Mapping[Family, Callable[[dict[str, Any], OrganismConfig], PreTrainedConfig]]] = {
    "llama": _plain("Llama"),
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "olmo2": _plain("Olmo2"),
    "phi": _plain("Phi"),
    "gpt2": _gpt2,
    "mixtral": _mixtral,
}
assert set(_BUILDERS) == set(get_args(Family))
