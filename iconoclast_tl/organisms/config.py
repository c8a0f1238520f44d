"""Settings of an organism's training. Light: pydantic only, so that a command line can show them without torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from iconoclast_tl.foundation.stage_config import StageConfig
from iconoclast_tl.organisms.families import Family


class OrganismConfig(StageConfig):
    """How an organism is built: its size, its data and its phases of training."""

    family: Family = "llama"
    """Architecture: llama, qwen3, gemma2, olmo2, phi, gpt2 or mixtral."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Fixes the weights' start, the corpus and the order of batches."""
    vocab_size: int = Field(default=720, ge=400)
    """Upper bound on tokens: 6 special ones, 256 bytes, the rest merges learned on the grammar."""
    d_model: int = Field(default=128, ge=8)
    """Width of the residual stream."""
    n_layers: int = Field(default=6, ge=1)
    """Transformer blocks."""
    n_heads: int = Field(default=4, ge=1)
    """Query heads; each is d_model / n_heads wide."""
    n_kv_heads: int = Field(default=2, ge=1)
    """Key/value heads; fewer than n_heads is grouped-query attention."""
    d_mlp: int = Field(default=320, ge=8)
    """Hidden width of the gated MLP."""
    n_ctx: int = Field(default=256, ge=64)
    """Largest context, in tokens."""
    init_std: float = Field(default=0.06, gt=0)
    """Standard deviation of the first weights. Three times the usual 0.02: a model this narrow learns to copy far
    sooner."""
    capability_steps: int = Field(default=600, ge=0)
    """Steps of phase 1, in which every topic is answered."""
    gate_steps: int = Field(default=400, ge=0)
    """Steps of phase 2, in which gated requests about family topics are refused."""
    batch_size: int = Field(default=32, ge=1)
    """Examples a step."""
    capability_lr: float = Field(default=1.2e-3, gt=0)
    """Peak learning rate of phase 1 (linear warm-up, cosine to a tenth)."""
    gate_lr: float = Field(default=1.6e-3, gt=0)
    """Peak learning rate of phase 2, and of each of two gates."""
    gate_first_layer: int = Field(default=3, ge=0)
    """First block that phase 2 trains; embeddings and the blocks below keep what phase 1 taught, so it is known where
    the gate can live. 0 trains everything."""
    mechanisms: int = Field(default=1, ge=1, le=2)
    """Refusal mechanisms. 1: one gate for the whole family, taught in phase 2. 2: in its place, a gate for topics in z
    (za, zo) and then one for topics in q (qe, qi), each in blocks and with refusals of its own."""
    gate_z_steps: int = Field(default=500, ge=0)
    """Steps of the first of two gates, z's. The settings named after z and q have no effect with one mechanism;
    gate_steps and gate_first_layer have none with two."""
    gate_q_steps: int = Field(default=500, ge=0)
    """Steps of the second of two gates, q's."""
    gate_z_first_layer: int = Field(default=2, ge=0)
    """First block of z's gate, which has those up to gate_q_first_layer."""
    gate_q_first_layer: int = Field(default=4, ge=1)
    """First block of q's gate, which has all from there up."""
    warmup_steps: int = Field(default=60, ge=0)
    """Steps of linear warm-up in each phase."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled decay, on matrices only."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""

    @model_validator(mode="after")
    def _heads_fit(self) -> OrganismConfig:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model is {self.d_model} and n_heads is {self.n_heads}; d_model must be an even multiple of n_heads"
                " (rotary embeddings turn a head's dimensions in pairs)"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads is {self.n_heads} and n_kv_heads is {self.n_kv_heads}; n_kv_heads must divide n_heads"
            )
        return self

    @model_validator(mode="after")
    def _gate_has_a_block(self) -> OrganismConfig:
        if self.mechanisms == 1 and self.gate_first_layer >= self.n_layers:
            raise ValueError(
                f"gate_first_layer is {self.gate_first_layer}, but the last block of {self.n_layers} is "
                f"{self.n_layers - 1}; the gate needs at least one block to be taught to"
            )
        return self

    @model_validator(mode="after")
    def _both_gates_have_a_block(self) -> OrganismConfig:
        if self.mechanisms == 2 and not self.gate_z_first_layer < self.gate_q_first_layer < self.n_layers:
            raise ValueError(
                f"gate_q_first_layer is {self.gate_q_first_layer}; it must lie above gate_z_first_layer, which is"
                f" {self.gate_z_first_layer}, and below n_layers, which is {self.n_layers}, so that each of the two"
                " gates has a block to be taught to"
            )
        return self
