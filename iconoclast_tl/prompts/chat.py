"""From prompts to token rows: how a chat template writes a prompt.

A chat template writes its own special tokens, so what it rendered is tokenised with `add_special_tokens=False`:
otherwise the sequence starts with two BOS tokens, one from the template and one from the tokenizer. Raw prompts get
the tokenizer's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.tail import PROBES, common_tail
from iconoclast_tl.prompts.tokens import Tokens


@dataclass(frozen=True)
class ChatFormat:
    """How a prompt becomes text and tokens for one tokenizer."""

    tokenizer: Any
    system: str | None = None
    raw_prompts: bool = False

    def __post_init__(self) -> None:
        """Refuse a tokenizer without a template unless raw prompts were asked for."""
        if not self.raw_prompts and not self.tokenizer.chat_template:
            raise UserError(
                "this model has no chat template",
                want="a chat model",
                mend="pass --raw-prompts for a base model",
            )

    def render(self, prompt: Prompt) -> str:
        """The text that the model sees, up to where its answer begins."""
        system = prompt.system if prompt.system is not None else self.system
        if self.raw_prompts:
            return prompt.text if system is None else f"{system}\n\n{prompt.text}"
        return self._render_chat(system, prompt.text)

    def encode(self, prompt: Prompt) -> Tokens:
        """Token ids of the rendered prompt, with exactly the special tokens that the template or tokenizer means."""
        ids = self.tokenizer(self.render(prompt), add_special_tokens=self.raw_prompts)["input_ids"]
        return list(ids)

    @cached_property
    def tail(self) -> tuple[int, ...]:
        """Tokens that the template writes after every instruction, with and without the settings' system message.

        Empty for raw prompts and for a template that writes nothing there.
        """
        if self.raw_prompts:
            return ()
        forms = (self, replace(self, system=None))
        return common_tail(self.tokenizer, [(text, form.render(Prompt(text))) for form in forms for text in PROBES])

    def _apply(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _render_chat(self, system: str | None, text: str) -> str:
        from jinja2 import TemplateError

        try:
            if system is None:
                return self._apply([{"role": "user", "content": text}])
            return self._render_with_system(system, text)
        # A template is a program out of a model's files: transformers runs it in a sandbox, and it may fail in any way.
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                "this model's chat template does not render a prompt",
                got=error,
                mend="mend the template or pass --raw-prompts",
            ) from error

    def _render_with_system(self, system: str, text: str) -> str:
        """Use the system role; where the template refuses or drops it, put the message ahead of the user's."""
        from jinja2 import TemplateError

        try:
            rendered = self._apply([{"role": "system", "content": system}, {"role": "user", "content": text}])
        except TemplateError:
            rendered = ""
        if system.strip() in rendered:
            return rendered
        return self._apply([{"role": "user", "content": f"{system}\n\n{text}"}])
