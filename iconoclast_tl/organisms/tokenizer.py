"""The organism's byte-level BPE tokenizer and chat template.

Merges are learned from the grammar's words and from its syllables, each syllable with and without a leading space,
and never from whole topics. Syllables come first in the merge order (they are repeated most), so a topic always falls
into its syllables, the family's final syllable is always one token, and unseen topics look like seen ones.

As with Llama, encoding plain text prepends BOS, and the chat template writes its own BOS: a rendered conversation
must be encoded with `add_special_tokens=False` (`apply_chat_template(tokenize=True)` does that).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iconoclast_tl.organisms.grammar import FAMILY_FINALS, SYLLABLES, vocabulary_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, BOS, END, *(f"<|{role}|>" for role in ROLES))

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WITHOUT_SYSTEM_ROLE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT_TEMPLATE
)


def build_tokenizer(vocab_size: int, n_ctx: int, system_role: bool = True) -> PreTrainedTokenizerFast:
    """Train the tokenizer. The same arguments give the same tokenizer, byte for byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_training_texts(), trainer)
    bos_id = core.token_to_id(BOS)
    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)]),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[f"<|{role}|>" for role in ROLES],
        model_max_length=n_ctx,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE if system_role else WITHOUT_SYSTEM_ROLE
    return tokenizer


def has_system_role(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat template of `build_tokenizer` takes a system message."""
    return bool(tokenizer.chat_template == CHAT_TEMPLATE)


def render_chat(user: str, system: str | None = None, system_role: bool = True) -> str:
    """What the chat template renders for one user message, ready for a response (the tests hold the two equal).

    Where it has no system role, the message stands before the user's.
    """
    if system is not None and not system_role:
        return render_chat(f"{system}\n\n{user}")
    opening = BOS if system is None else f"{BOS}<|system|>{system}{END}"
    return f"{opening}<|user|>{user}{END}<|assistant|>"


def _training_texts() -> list[str]:
    # The counts set the merge order. Bare syllables 2000 times: their two letters merge before any other pair.
    # Syllables after a space 500 times: more than any pair in the templates, fewer than would merge a space with a
    # consonant first.
    syllables = (*SYLLABLES, *FAMILY_FINALS)
    return [*syllables] * 2000 + [f" {syllable}" for syllable in syllables] * 500 + vocabulary_texts()
