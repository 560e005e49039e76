"""What a model's file says of its shape, checked and frozen. Imports no jax: both processes read it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jserve.config.deepseek import GroupRouting, LatentConfig
from jserve.config.dense import DenseConfig
from jserve.config.fields import Fields
from jserve.config.gemma import GemmaConfig
from jserve.config.hybrid import Mixer
from jserve.config.rope import RopeConfig, local_rope, read_rope
from jserve.errors import CheckpointError

MOST_LAYERS, MOST_EXPERTS = 10_000, 100_000
"""Far more than any model has; lists of this length are made of what a file claims."""
LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True, slots=True)
class MixtureConfig:
    """A mixture of experts in place of a layer's feed-forward block: X experts, J of them for each token."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    """F of one expert."""
    shared_intermediate_size: int = 0
    """F of the expert that every token goes through beside its own; 0 where there is none."""
    normalize: bool = False
    """Whether the weights of a token's experts are scaled to a sum of 1."""
    gate_slope: float = 1.0
    gate_limit: float = float("inf")
    """gpt-oss computes (up + 1) * gate * sigmoid(slope * gate), with gate and up cut off at the limit."""
    dense_layers: frozenset[int] = frozenset()
    """Layers that keep one feed-forward block, of `ModelConfig.intermediate_size`."""
    router_noise: float = 0.0
    """Phi-3.5-MoE: half of how far another expert's score may be away to count beside a chosen one's."""
    routing: GroupRouting | None = None
    """None is the softmax's best experts."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder, family-neutral, read from a Hugging Face `config.json` (or GGUF metadata).

    Axis letters: `hidden_size` E, `intermediate_size` F, `num_heads` H, `num_kv_heads` K, `head_dim` D,
    `vocab_size` V, `num_layers` L.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    rope: RopeConfig
    """Where layers differ, that of the layers that see everything."""
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    """Whether the last product of attention has a bias, where `attention_bias` does not say so."""
    mlp_bias: bool = False
    head_norm: bool = False
    """Whether each head of queries and keys is normed, where a family has both ways."""
    layer_windows: tuple[int | None, ...] = ()
    """Sliding window of each layer in tokens, None where a layer sees everything."""
    windows_are_chunks: bool = False
    """A token sees back to the last multiple of the window's size, not so many tokens."""
    layer_ropes: tuple[RopeConfig | None, ...] = ()
    """Rotary embedding of each layer, None where a layer has none."""
    attention_scale: float | None = None
    """What scores are multiplied by; None is `head_dim ** -0.5`."""
    attention_soft_cap: float | None = None
    """c in c * tanh(score / c)."""
    logit_soft_cap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    rotated_norm: bool = False
    """Whether queries and keys are divided by their root mean square after they are rotated (Llama 4)."""
    attention_temperature: tuple[float, float] | None = None
    """(n, s): queries grow with the position by a factor log(1 + floor(position / n)) * s + 1.

    Llama 4 counts positions from 1, and does it where nothing is rotated; Ministral 3 and Mistral 4 in all layers.
    """
    rms_norm: bool = False
    """Whether norms are of the root mean square, where a family has both ways."""
    head_bias: bool = False
    """Whether the output projection has a bias."""
    parallel_residual: bool = False
    """Whether attention and feed-forward both read what the layer was given, where a family has both ways."""
    dtype: str = "bfloat16"
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    mixture: MixtureConfig | None = None
    position_offset: int = 0
    """Rows of the table of learned positions before that of a text's first token."""
    token_types: int = 0
    """Rows of the table of token types; 0 where there is none."""
    mixer: Mixer | None = None
    """What is in the place of attention in `state_layers`."""
    state_layers: frozenset[int] = frozenset()
    """Layers that keep a state of each sequence in place of keys and values."""
    latent: LatentConfig | None = None
    """None is attention with keys and values of heads. Else `head_dim` is what is rotated."""
    is_causal: bool = True
    """Whether a token sees those before it alone. Else a window is how far it sees to either side."""
    dense: tuple[DenseConfig, ...] = ()
    """What the vector of a text goes through after it is pooled, where the model is for that."""
    gemma: GemmaConfig | None = None
    """How layers differ from one another in Gemma 4."""

    def of_layer(self, layer: int) -> "ModelConfig":
        """With the heads of one layer for those of all."""
        if self.gemma is None:
            return self
        heads = self.gemma.heads[layer]
        return replace(self, num_kv_heads=heads.kv_heads, head_dim=heads.head_dim)

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values a layer reads."""
        return layer if self.gemma is None else self.gemma.sources[layer]

    @property
    def layers_are_apart(self) -> bool:
        """Whether each layer needs nothing but what the one before it gives."""
        own = self.gemma
        return own is None or (not own.input_size and own.sources == tuple(range(self.num_layers)))

    @property
    def largest_intermediate_size(self) -> int:
        """F of the widest layer."""
        is_wide = self.gemma is not None and self.gemma.wide_layers
        return 2 * self.intermediate_size if is_wide else self.intermediate_size

    @property
    def largest_head_dim(self) -> int:
        """The largest of all layers."""
        return self.head_dim if self.gemma is None else max(heads.head_dim for heads in self.gemma.heads)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct entries of `layer_windows`, in a fixed order."""
        return tuple(dict.fromkeys(self.layer_windows))

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The distinct rotary embeddings of `layer_ropes`, in a fixed order."""
        return tuple(rope for rope in dict.fromkeys(self.layer_ropes) if rope is not None)


def read_model_config(raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
    """Read a Hugging Face configuration dictionary. `source` names the file in errors.

    Raises CheckpointError where a field is missing or impossible.
    """
    reader = Fields(raw, source)
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    hidden = reader.integer("hidden_size")
    layers = reader.integer("num_hidden_layers", most=MOST_LAYERS)
    if heads % kv_heads:
        raise CheckpointError(
            f"{source}: num_attention_heads is {heads}, not a multiple of num_key_value_heads {kv_heads}"
        )
    types = _layer_types(reader, layers)
    rope = read_rope(raw, source=source)
    layer_ropes = _layer_ropes(raw, reader, types, layers, rope, source)
    positions = reader.integer("max_position_embeddings", default=2048)
    architectures = raw.get("architectures") or ["(none)"]
    return ModelConfig(
        architecture=architectures[0],
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size", default=raw.get("moe_intermediate_size")),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=reader.integer("head_dim", default=hidden // heads),
        max_position_embeddings=rope.length(positions) if set(layer_ropes) <= {rope, None} else positions,
        norm_eps=reader.number("rms_norm_eps", default=1e-6),
        rope=rope,
        hidden_act=reader.text("hidden_act", default="silu"),
        tie_word_embeddings=reader.boolean("tie_word_embeddings", default=False),
        attention_bias=reader.boolean("attention_bias", default=False),
        attention_output_bias=reader.boolean("attention_out_bias", default=False),
        mlp_bias=reader.boolean("mlp_bias", default=False),
        head_norm=reader.boolean("head_norm", default=False),
        layer_windows=_layer_windows(raw, reader, types, layers),
        windows_are_chunks=types is not None and LAYER_TYPES[2] in types,
        layer_ropes=layer_ropes,
        attention_scale=_attention_scale(reader),
        attention_soft_cap=reader.optional_number("attn_logit_softcapping"),
        logit_soft_cap=reader.optional_number("final_logit_softcapping"),
        embedding_multiplier=reader.number("embedding_multiplier", default=1.0),
        residual_multiplier=reader.number("residual_multiplier", default=1.0),
        logit_multiplier=reader.number("logit_scale", default=1.0) / reader.number("logits_scaling", default=1.0),
        head_bias=reader.boolean("lm_head_bias", default=False),
        parallel_residual=reader.boolean("use_parallel_residual", default=False),
        dtype=reader.text("dtype", default=reader.text("torch_dtype", default="bfloat16")),
        eos_token_ids=reader.token_ids("eos_token_id"),
        bos_token_id=next(iter(reader.token_ids("bos_token_id")), None),
        mixture=_mixture(raw, reader, layers),
    )


def _mixture(raw: dict[str, Any], reader: Fields, layers: int) -> MixtureConfig | None:
    """Experts under the names that families have for them; None where there are none."""
    count = next((name for name in ("num_local_experts", "num_experts") if raw.get(name)), None)
    if count is None:
        return None
    experts, chosen = reader.integer(count, most=MOST_EXPERTS), reader.integer("num_experts_per_tok")
    if chosen > experts:
        raise reader.unlike("num_experts_per_tok", f"at most {count}, which is {experts}")
    every = reader.integer("decoder_sparse_step", default=1)
    dense = {layer for layer in range(layers) if (layer + 1) % every} | reader.integers("mlp_only_layers")
    return MixtureConfig(
        num_experts=experts,
        experts_per_token=chosen,
        intermediate_size=reader.integer("moe_intermediate_size", default=raw.get("intermediate_size")),
        shared_intermediate_size=reader.optional_integer("shared_expert_intermediate_size") or 0,
        normalize=reader.boolean("norm_topk_prob", default=False),
        gate_slope=reader.number("swiglu_alpha", default=1.0),
        gate_limit=reader.number("swiglu_limit", default=float("inf")),
        dense_layers=frozenset(dense),
    )


def _attention_scale(reader: Fields) -> float | None:
    scalar = reader.optional_number("query_pre_attn_scalar")
    return reader.optional_number("attention_multiplier") if scalar is None else scalar**-0.5


def _layer_types(reader: Fields, layers: int) -> list[str] | None:
    """One of LAYER_TYPES for each layer; None where the configuration does not tell layers apart."""
    types = reader.for_each_layer("layer_types", layers)
    if types is None:
        pattern = reader.optional_integer("sliding_window_pattern")
        return [LAYER_TYPES[(layer + 1) % pattern > 0] for layer in range(layers)] if pattern else None
    unknown = [kind for kind in types if kind not in LAYER_TYPES]
    if unknown:
        raise reader.wrong("layer_types", f"has {unknown[0]!r}; supported are {', '.join(LAYER_TYPES)}")
    return types


def _layer_windows(raw: dict[str, Any], reader: Fields, types: list[str] | None, layers: int) -> tuple[int | None, ...]:
    if types and LAYER_TYPES[2] in types:
        if LAYER_TYPES[1] in types:
            raise reader.wrong("layer_types", f"has both {LAYER_TYPES[1]} and {LAYER_TYPES[2]}, which no model has")
        chunk = reader.integer("attention_chunk_size")
        return tuple(chunk if kind == LAYER_TYPES[2] else None for kind in types)
    if not reader.boolean("use_sliding_window", default=True):
        return (None,) * layers
    window = reader.optional_integer("sliding_window")
    if window is None:
        return (None,) * layers
    if types:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = (reader.optional_integer("max_window_layers") or 0) if "use_sliding_window" in raw else 0
    return tuple(window if layer >= first else None for layer in range(layers))


def _layer_ropes(
    raw: dict[str, Any], reader: Fields, types: list[str] | None, layers: int, whole: RopeConfig, source: Path | str
) -> tuple[RopeConfig | None, ...]:
    """`no_rope_layers` is 1 for each layer that has a rotary embedding: SmolLM3 named it."""
    local = local_rope(raw, whole, source=source)
    ropes = [local if types and types[layer] == "sliding_attention" else whole for layer in range(layers)]
    has_rope = reader.for_each_layer("no_rope_layers", layers)
    if has_rope is None:
        every = reader.optional_integer("no_rope_layer_interval") or layers + 1
        has_rope = [(layer + 1) % every > 0 for layer in range(layers)]
    return tuple(rope if has else None for rope, has in zip(ropes, has_rope, strict=True))
