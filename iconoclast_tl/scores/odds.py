"""Log-odds of a behaviour without generation, from the probabilities of the token prefixes that open it.

A *path* is a prefix of a response that opens the behaviour ("i cannot"). The paths of a prompt form a tree: its
leaves are the paths, its nodes the prefixes that are still open. Under sampling, with p along the edges,

    log-odds = log Σ_leaves Π p − log Σ_nodes (Π p to the node) · (1 − Σ p of its edges)

the probability of entering against that of escaping, node by node. Both are logsumexps of logits, so the value is exact
and has a gradient also where a probability rounds to 1. A node counts by the probability that escapes there: positions
at which the response can still turn elsewhere decide, and tokens that merely complete a phrase do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """The trees of several prompts as index tensors; `row` and `depth` say where a node's logits stand."""

    row: Int[Tensor, "node"]
    depth: Int[Tensor, "node"]
    prompt: Int[Tensor, "node"]
    edge_node: Int[Tensor, "edge"]
    edge_token: Int[Tensor, "edge"]
    to_node: Float[Tensor, "node edge"]
    """1 where an edge lies on the way from the root to a node."""
    to_leaf: Float[Tensor, "leaf edge"]
    leaf_prompt: Int[Tensor, "leaf"]


def tree_log_odds(at: Float[Tensor, "candidate node vocab"], tree: Tree, n: int) -> Float[Tensor, "candidate n"]:
    """The formula above, for each of n prompts under each candidate, from the logits at every node."""
    device = at.device
    edge_node, edge_token = tree.edge_node.to(device), tree.edge_token.to(device)
    total = at.logsumexp(-1)
    edges = at[:, edge_node, edge_token] - total[:, edge_node]
    taken: Bool[Tensor, "node vocab"] = torch.zeros(at.shape[1:], dtype=torch.bool, device=device)
    taken[edge_node, edge_token] = True
    escape = at.masked_fill(taken, -torch.inf).logsumexp(-1) - total
    outside = edges @ tree.to_node.to(edges).T + escape
    inside = edges @ tree.to_leaf.to(edges).T
    return grouped_logsumexp(inside, tree.leaf_prompt, n) - grouped_logsumexp(outside, tree.prompt, n)


def grouped_logsumexp(
    values: Float[Tensor, "candidate item"], group: Int[Tensor, "item"], n: int
) -> Float[Tensor, "candidate n"]:
    """log Σ exp over the items of each of n groups; −∞ for a group without any."""
    index = group.to(values.device).expand(values.shape)
    empty = values.new_full((len(values), n), -torch.inf)
    top = empty.scatter_reduce(-1, index, values.detach(), "amax")
    shift = torch.where(top.isfinite(), top, torch.zeros_like(top))
    sums = torch.zeros_like(empty).scatter_add(-1, index, (values - shift.gather(-1, index)).exp())
    return shift + sums.log()


def token_log_odds(logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "t"]) -> Float[Tensor, "*batch"]:
    """Log-odds of saying one of `tokens`: logsumexp over them − logsumexp over the others."""
    chosen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    chosen[tokens.to(logits.device)] = True
    inside = logits.masked_fill(~chosen, -torch.inf).logsumexp(-1)
    return inside - logits.masked_fill(chosen, -torch.inf).logsumexp(-1)


def rising_tokens(
    target: Float[Tensor, "n vocab"], neutral: Float[Tensor, "m vocab"], at_most: int = 8, least: float = 0.01
) -> Int[Tensor, "t"]:
    """The tokens whose mean probability rises most from neutral to target prompts, by falling rise.

    From log-probabilities of the first token. Those that rise by at least `least`; none where none does.
    """
    rise = target.exp().mean(0) - neutral.exp().mean(0)
    values, tokens = rise.topk(min(at_most, len(rise)))
    return tokens[values >= least]
