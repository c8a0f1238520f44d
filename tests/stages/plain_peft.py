"""A user without this project: plain `peft` and plain `transformers` on a run folder. Imports nothing of the package.

    python plain_peft.py BASE ADAPTER MERGED PROMPTS.jsonl BUDGET

Prints, as JSON, the greedy new tokens of every prompt for the base, the base with the adapter, and the merged weights.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(base: str, adapter: str, merged: str, prompts: str, budget: int) -> None:
    with open(prompts, encoding="utf-8") as file:  # noqa: PTH123 (as a user would)
        rows = [json.loads(line) for line in file]
    tokenizer = AutoTokenizer.from_pretrained(merged, padding_side="left")
    texts = []
    for row in rows:
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        messages = [*system, {"role": "user", "content": row["prompt"]}]
        texts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)

    def answer(model: torch.nn.Module) -> list[list[int]]:
        with torch.no_grad():
            output = model.eval().generate(**batch, max_new_tokens=budget, do_sample=False)
        return output[:, batch["input_ids"].shape[1] :].tolist()

    said = {"base": answer(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))}
    fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    said["adapter"] = answer(PeftModel.from_pretrained(fresh, adapter))
    said["merged"] = answer(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    assert not any(name.startswith("iconoclast_tl") for name in sys.modules)
    print(json.dumps({"pad": tokenizer.pad_token_id, **said}))


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
