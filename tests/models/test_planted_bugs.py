"""The cases of test_parity.py see a family that is computed wrongly: its logits are no longer those of transformers."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jserve.config import MixtureConfig, ModelConfig, RopeConfig
from jserve.layers import attention, norm
from jserve.layers.grouped_router import GroupedRouter
from jserve.layers.moe import Router
from jserve.models import gemma4, glm4, hunyuan, llama4, phimoe
from jserve.models.gpt_oss import BiasedRouter
from jserve.runtime import prepare
from tests.models.test_parity import CASES, LOGIT_TOLERANCE, PROMPTS
from tests.quant.prefill import prefill_logits
from tests.worlds import make_model, reference, reference_logits

Change = Callable[[ModelConfig], ModelConfig]
Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """In what is read of the configuration, or in the code of layers."""

    case: str
    change: Change = lambda config: config
    plant: Plant = lambda monkeypatch: None
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration, beside the case's own."""


def without(**values: Any) -> Change:
    return lambda config: replace(config, **values)


def ropes(change: Callable[[RopeConfig | None, ModelConfig], RopeConfig | None]) -> Change:
    return lambda config: replace(config, layer_ropes=tuple(change(rope, config) for rope in config.layer_ropes))


def mixture(**values: Any) -> Change:
    def change(config: ModelConfig) -> ModelConfig:
        assert isinstance(config.mixture, MixtureConfig)
        return replace(config, mixture=replace(config.mixture, **values))

    return change


def no_windows(config: ModelConfig) -> ModelConfig:
    return replace(config, layer_windows=(None,) * config.num_layers, windows_are_chunks=False)


def instead(owner: Any, name: str, value: Any) -> Plant:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def softmax_of_the_best(self: Router, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    scores, experts = jax.lax.top_k(logits, self.mixture.experts_per_token)
    return experts, jax.nn.softmax(scores)


def weighted_after(self: Any, x: Any, experts: Any, weights: Any, arrays: Any) -> jax.Array:
    return super(llama4.Llama4Experts, self)._local(x, experts, weights, arrays)


def weighed_by_rank(self: GroupedRouter, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    assert self.e_score_correction_bias is not None
    ranked = jax.nn.sigmoid(logits) + self.e_score_correction_bias[...]
    weights, experts = jax.lax.top_k(self._of_best_groups(ranked), self.mixture.experts_per_token)
    return experts, weights / weights.sum(-1, keepdims=True) * self.routing.scale


def routing(**values: Any) -> Change:
    def change(config: ModelConfig) -> ModelConfig:
        assert config.mixture is not None
        assert config.mixture.routing is not None
        return mixture(routing=replace(config.mixture.routing, **values))(config)

    return change


def before_alone(self: Any, x: Any, kv: Any, context: Any) -> Any:
    return super(glm4.Glm4DecoderLayer, self).__call__(x, kv, context)


def nothing(self: Any, token_ids: jax.Array, x: jax.Array) -> jax.Array:
    return jax.numpy.zeros((token_ids.size, *self.layers_and_size), x.dtype)


IN_CHUNKS = {"attention_chunk_size": 16}
"""The prompt is computed with pages of 16."""
BUGS: dict[str, Bug] = {
    "llama3 scaling is left out": Bug("llama 3 rope", ropes(lambda rope, _: rope and replace(rope, kind="default"))),
    "yarn without its factor": Bug(
        "llama, yarn",
        ropes(lambda rope, _: rope and replace(rope, scaling=(*rope.scaling, ("attention_factor", 1.0)))),
    ),
    "whole heads are rotated": Bug(
        "phi 4, partial rotary, tied", ropes(lambda rope, _: rope and replace(rope, partial=1.0))
    ),
    "rope on every layer": Bug("smollm 3", ropes(lambda _, config: config.rope)),
    "one rope for all layers": Bug("gemma 3, scaled global rope", ropes(lambda _, config: config.rope)),
    "no sliding window": Bug("mistral, sliding window", no_windows),
    "a window one token wider": Bug(
        "gemma 2",
        lambda config: replace(config, layer_windows=tuple(size and size + 1 for size in config.layer_windows)),
    ),
    "scores are not capped": Bug("gemma 2, caps that bite", without(attention_soft_cap=None)),
    "logits are not capped": Bug("gemma 2, caps that bite", without(logit_soft_cap=None)),
    "scores of another scale": Bug("gemma 3", without(attention_scale=None)),
    "residuals are not multiplied": Bug("granite", without(residual_multiplier=1.0)),
    "one block after the other": Bug("gpt neox", without(parallel_residual=False)),
    "norms of heads, not of all": Bug(
        "olmo 2, one KV head",
        plant=lambda monkeypatch: monkeypatch.setattr(
            norm.HeadsRMSNorm,
            "__call__",
            lambda self, x: self.weight[...] * norm.over_rms(x, self.eps),
        ),
    ),
    "no sinks": Bug(
        "gpt-oss",
        plant=lambda monkeypatch: monkeypatch.setattr(
            attention,
            "paged_attention",
            lambda *args, real=attention.paged_attention, **named: real(*args[:6], None, *args[7:], **named),
        ),
    ),
    "the gate is not clamped": Bug("gpt-oss", mixture(gate_limit=float("inf"))),
    "the router has no bias": Bug("gpt-oss", plant=instead(BiasedRouter, "logits", Router.logits)),
    "weights of experts are not normalised": Bug("mixtral", mixture(normalize=False)),
    "groups are not looked at": Bug(
        "deepseek 3", plant=instead(GroupedRouter, "_of_best_groups", lambda self, ranked: ranked)
    ),
    "yarn's factor on scores is left out": Bug(
        "deepseek 3", lambda config: replace(config, attention_scale=(12 + 8) ** -0.5)
    ),
    "a window in place of chunks": Bug("llama 4", without(windows_are_chunks=False), fields=IN_CHUNKS),
    "no chunks": Bug("llama 4", no_windows, fields=IN_CHUNKS),
    "queries do not grow": Bug("llama 4", without(attention_temperature=None), fields=IN_CHUNKS),
    "rotated heads are not normed": Bug("llama 4", without(rotated_norm=False), fields=IN_CHUNKS),
    "shares of experts instead of scores of each": Bug(
        "llama 4, two experts of a token, a dense layer",
        plant=instead(llama4.Llama4Router, "choose", softmax_of_the_best),
        fields=IN_CHUNKS,
    ),
    "results of experts are weighted": Bug(
        "llama 4", plant=instead(llama4.Llama4Experts, "_local", weighted_after), fields=IN_CHUNKS
    ),
    "halves are rotated, not neighbours": Bug(
        "ernie 4.5", ropes(lambda rope, _: rope and replace(rope, interleaved=False))
    ),
    "the bias that chooses weighs, too": Bug("glm 4 moe", plant=instead(GroupedRouter, "choose", weighed_by_rank)),
    "scores are not a sigmoid's": Bug("minimax m2", routing(scoring="softmax")),
    "a router without its bias": Bug("ernie 4.5 moe", routing(corrected=False)),
    "blocks are not normed behind": Bug("glm 4", plant=instead(glm4.Glm4DecoderLayer, "__call__", before_alone)),
    "heads are not normed": Bug("hunyuan", plant=instead(hunyuan.HunYuanAttention, "place", attention.Attention.place)),
    "rope where layers see everything": Bug("exaone 4", ropes(lambda _, config: config.rope)),
    "windows have the scaled rope": Bug("olmo 3", ropes(lambda _, config: config.rope)),
    "experts weigh against all others": Bug("phimoe", plant=instead(phimoe.SparseMixer, "choose", Router.choose)),
    "logits have no bias": Bug("phimoe", without(head_bias=False)),
    "latent queries do not grow": Bug("mistral 4", without(attention_temperature=None)),
    "weights of norms are not counted from 1": Bug(
        "nemotron", plant=instead(norm.OffsetLayerNorm, "__call__", norm.LayerNorm.__call__)
    ),
    "a base of the rope for all layers": Bug("granite, windows", ropes(lambda rope, config: rope and config.rope)),
    "layers are given nothing": Bug("gemma 4, small", plant=instead(gemma4.Gemma4Decoder, "layer_inputs", nothing)),
    "the rotated share turns by itself": Bug(
        "gemma 4, small", ropes(lambda rope, _: rope and replace(rope, kind="default"))
    ),
    "experts without a scale of their own": Bug(
        "gemma 4, experts", plant=instead(gemma4.Gemma4Router, "choose", Router.choose)
    ),
}


IN_DEFAULT_RUN = {
    "a window in place of chunks",
    "llama3 scaling is left out",
    "logits are not capped",
    "no sliding window",
    "weights of experts are not normalised",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_DEFAULT_RUN else pytest.mark.slow) for name in BUGS]
)
def test_the_case_fails(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    architecture, fields = CASES[bug.case]
    folder = make_model(tmp_path, architecture, **{**fields, **bug.fields})
    expected = reference_logits(reference(folder), PROMPTS["long"])
    if bug.fields:  # else test_parity.py sees that the case passes
        np.testing.assert_allclose(prefill_logits(folder, PROMPTS["long"]), expected, atol=LOGIT_TOLERANCE)
    jax.clear_caches()  # layers traced as they should be, by this test or another
    bug.plant(monkeypatch)
    resolve = prepare.resolve_decoder

    def broken(*args: Any, **named: Any) -> tuple[Any, ModelConfig]:
        family, config = resolve(*args, **named)
        return family, bug.change(config)

    monkeypatch.setattr(prepare, "resolve_decoder", broken)
    actual = prefill_logits(folder, PROMPTS["long"])
    jax.clear_caches()  # that of the wrong one
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(actual, expected, atol=LOGIT_TOLERANCE)
