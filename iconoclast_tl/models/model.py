"""A chat model with all that is known of it: where it writes into the stream, its post-norms, its chat format."""

from __future__ import annotations

import inspect
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor, nn

from iconoclast_tl.architecture.hook_points import HookedModule, hf_sites
from iconoclast_tl.architecture.offloading import device_of
from iconoclast_tl.architecture.post_norm import Gains, post_norm_gains
from iconoclast_tl.architecture.sites import WRITERS, Component, Site
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.fingerprint import fingerprint_of
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.tokens import TokenBatch, require_context


@dataclass(frozen=True, eq=False)
class Model:
    """A Hugging Face causal language model and its tokenizer.

        model = Model(hf_model, tokenizer)

    The Hugging Face model stays what it is: no module is replaced and no weight is changed, so that it can be saved,
    and given to PEFT, at any time. It is put into eval mode and its parameters are frozen (`requires_grad_(False)`),
    since previews, gradients of strengths and comparisons of logits all need that.

    Raises `UserError` for what is no causal language model of transformers, and for one that PEFT or TransformerLens
    has wrapped already.
    """

    hf: Any
    tokenizer: Any
    _: KW_ONLY
    name: str = ""
    """A hub id or a folder; by default what the configuration says."""
    dtype: str = ""
    """In which it computes, such as `float32`; by default that of its parameters."""
    quantization: str = "none"
    """`4bit` or `8bit` for bitsandbytes' weights; told from the model where it is not given."""
    system: str | None = None
    """The system message of prompts that have none of their own."""
    raw_prompts: bool = False
    """Put prompts to the model as they are, without a chat template (for base models)."""
    attention_only: bool = False
    """Leave what the MLPs write alone: for architectures whose experts cannot be reached."""
    notes: tuple[str, ...] = field(default=(), repr=False)
    """What a user should know about how it was loaded (such as a dtype that had to be given up)."""

    def __post_init__(self) -> None:
        """Check what was given, fill in what was not, and freeze."""
        _require_causal_lm(self.hf)
        _require_tokenizer(self.tokenizer)
        defaults = {
            "name": str(getattr(self.hf.config, "_name_or_path", "") or type(self.hf).__name__),
            "dtype": str(self.hf.dtype).removeprefix("torch."),
        }
        for attribute, value in defaults.items():
            if not getattr(self, attribute):
                object.__setattr__(self, attribute, value)
        if self.quantization == "none":
            object.__setattr__(self, "quantization", _quantization_of(self.hf))
        compute_on_stored_weights(self.hf)
        self.hf.eval()
        self.hf.requires_grad_(False)

    def __repr__(self) -> str:
        """Such as `Model(organism: LlamaForCausalLM, 6 layers, d_model 128, float32)`."""
        quantised = "" if self.quantization == "none" else f", {self.quantization}"
        about = f"{type(self.hf).__name__}, {self.n_layers} layers, d_model {self.d_model}, {self.dtype}{quantised}"
        return f"Model({self.name}: {about})"

    # What is known of it ----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return device_of(self.hf.get_input_embeddings())

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.hf.config.get_text_config().num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.hf.config.get_text_config().hidden_size)

    @property
    def context_length(self) -> int | None:
        """Most positions that the model was built for, where its configuration says so."""
        length = getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def pad_id(self) -> int:
        """The token that fills on the left; masked, so which one it is does not matter.

        Where the tokenizer has none it stays so: making a word its padding would change what is saved with the fold.
        """
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in ids if token is not None))

    @property
    def components(self) -> tuple[Component, ...]:
        """The components whose writers an edit may change: both, or attention alone."""
        return ("attn_out",) if self.attention_only else WRITERS

    @cached_property
    def sites(self) -> dict[Site, HookedModule]:
        """Where to hook the Hugging Face model: its writers, and what enters every layer.

        Raises `UserError` for an architecture whose writers are not found.
        """
        return hf_sites(self.hf, self.components)

    @cached_property
    def gains(self) -> Gains:
        """γ of the post-norms, by component; empty where the model has none."""
        return post_norm_gains(self.hf)

    @cached_property
    def chat(self) -> ChatFormat:
        """How a prompt becomes text and tokens; `UserError` for a tokenizer without a chat template."""
        return ChatFormat(self.tokenizer, self.system, self.raw_prompts)

    @cached_property
    def fingerprint(self) -> str:
        """Names these weights: SHA-256 over the configuration and a sample of every parameter."""
        return fingerprint_of(self.hf)

    # Running it -------------------------------------------------------------------------------------------------------

    def inputs(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Keyword arguments of this model's forward pass for `batch`, on its device.

        `position_ids` start at each row's first real token; architectures that count positions from the mask or have
        none (ALiBi) do not take them.
        """
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.whole_mask}
        if "position_ids" in inspect.signature(self.hf.forward).parameters:
            inputs["position_ids"] = batch.position_ids
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @overload
    def generate(self, prompts: str | Prompt, max_new_tokens: int = 64, batch_size: int = 32) -> str: ...

    @overload
    def generate(
        self, prompts: list[str] | list[Prompt] | tuple[Prompt, ...], max_new_tokens: int = 64, batch_size: int = 32
    ) -> list[str]: ...

    def generate(
        self,
        prompts: str | Prompt | list[str] | list[Prompt] | tuple[Prompt, ...],
        max_new_tokens: int = 64,
        batch_size: int = 32,
    ) -> str | list[str]:
        """The greedy response to a prompt, or to each of several, under whatever edit is on.

        Prompts are put through the chat template. Raises `UserError` for an empty list, and for a prompt that does not
        fit the model's context together with `max_new_tokens`.
        """
        from iconoclast_tl.execution.generation import generate

        alone = isinstance(prompts, str | Prompt)
        asked: list[str | Prompt] = [prompts] if isinstance(prompts, str | Prompt) else [*prompts]
        if not asked:
            raise UserError("there are no prompts to generate from", want="a prompt, or a list with at least one")
        rows = [self.chat.encode(one if isinstance(one, Prompt) else Prompt(one)) for one in asked]
        require_context(rows, max_new_tokens, self.context_length)
        texts = [response.text for response in generate(self, rows, max_new_tokens, batch_size)]
        return texts[0] if alone else texts

    def bridge(self) -> Any:
        """A TransformerLens `TransformerBridge` over the same weights, for `run_with_cache` and its hooks.

        Takes no further memory for weights, and leaves the Hugging Face model as it is. Raises `UserError` where
        TransformerLens does not compute what the model computes.
        """
        from iconoclast_tl.models.twin import Twin, make_twin

        made = make_twin(self)
        if isinstance(made, Twin):
            return made.bridge
        raise UserError(
            f"TransformerLens cannot stand in for {type(self.hf).__name__}",
            got=made.reason,
            want="the logits of the Hugging Face model",
            mend="use the model itself: every verb works on it without TransformerLens",
        )


def require_model(model: object) -> None:
    """Raise `UserError` for what is no `Model`, such as a Hugging Face model by itself."""
    if not isinstance(model, Model):
        raise UserError(
            "this is no Model", got=type(model).__name__, want="itl.load_model(name), or itl.Model(hf_model, tokenizer)"
        )


def _require_causal_lm(hf: Any) -> None:
    if isinstance(hf, Model):
        raise UserError("this is a Model already", want="a Hugging Face model and its tokenizer")
    kind = type(hf).__name__
    if kind.startswith("Peft"):
        raise UserError(
            "the model is wrapped by PEFT", got=kind, want="the Hugging Face model", mend="pass model.get_base_model()"
        )
    if kind in ("TransformerBridge", "HookedTransformer"):
        raise UserError(
            "the model is wrapped by TransformerLens",
            got=kind,
            want="the Hugging Face model that it was made of, loaded anew",
            mend="edits work on a bridge, too: `with edit.on(bridge):`",
        )
    if not (isinstance(hf, nn.Module) and hasattr(hf, "config") and hasattr(hf, "get_output_embeddings")):
        raise UserError("this is no causal language model", got=kind, want="a model of transformers with its head")
    head: Any = hf.get_output_embeddings
    if head() is None:
        raise UserError(
            "this model has no language-model head", got=kind, want="for example AutoModelForCausalLM.from_pretrained"
        )


def _require_tokenizer(tokenizer: Any) -> None:
    if tokenizer is None or isinstance(tokenizer, str):
        raise UserError(
            "a model needs its tokenizer",
            got=type(tokenizer).__name__,
            want="a tokenizer of transformers, such as AutoTokenizer.from_pretrained(…)",
        )


def _quantization_of(hf: Any) -> str:
    """What bitsandbytes did on loading: `4bit`, `8bit` or `none`."""
    if getattr(hf, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(hf, "is_loaded_in_8bit", False) else "none"


def compute_on_stored_weights(hf: Any) -> None:
    """Have bitsandbytes compute on 4-bit weights as they are stored, on every CPU.

    On CPUs with AVX512-BF16 it (0.50) would pack them anew at the first forward pass, which gives other numbers there,
    and fails for matrices narrower than a block of 64.
    """
    for module in hf.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
