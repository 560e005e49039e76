"""What a sampler should do, in float64, and how the tests ask it: rows, masks, states and many draws."""

from functools import cache
from typing import Any

import jax
import numpy as np

from jserve.batch import SamplingState
from jserve.runtime import sampling
from jserve.runtime.pack import FIELDS
from jserve.runtime.sampling import INTEGER_FIELDS, Variant, make_sampler

V = 600
"""Three blocks of a draw's search, the last one not full."""
SLOTS = 8
FEW = 16
"""Rows of most batches here: every new shape costs a compile."""
MANY = 2048
"""Draws of one setting: enough to see each of 100 tokens that are about equally likely."""
DRAWS = Variant(draws=True, filters=True)
EDITS = Variant(draws=True, filters=True, edits=True)

NEUTRAL: dict[str, Any] = {"slots": SLOTS, "top_k": V, "leaving": 1 << 30, "top_p": 1.0, "repetition_penalty": 1.0}


def pack(rows: list[dict[str, Any]], vocab: int = V) -> np.ndarray:
    """i32[11, S]; what a row leaves out is off."""
    packed = np.zeros((len(FIELDS), len(rows)), np.int32)
    floats = packed.view(np.float32)
    for number, row in enumerate(rows):
        for name, value in {**NEUTRAL, "top_k": vocab, **row}.items():
            line = FIELDS[name]
            (packed if line < INTEGER_FIELDS else floats)[line, number] = value
    return packed


def pack_masks(allowed: np.ndarray) -> np.ndarray:
    """i32[S, ceil(V / 32)] of bool[S, V]."""
    masks = np.zeros((len(allowed), -(-allowed.shape[1] // 32)), np.int64)
    for row, token in zip(*np.nonzero(allowed), strict=True):
        masks[row, token // 32] |= 1 << (token % 32)
    return masks.astype(np.uint32).view(np.int32)


@cache
def compiled(variant: Variant) -> Any:
    return jax.jit(make_sampler(variant))


def sample(
    variant: Variant,
    logits: np.ndarray,
    rows: list[dict[str, Any]],
    state: SamplingState | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, SamplingState | None, np.ndarray]:
    """The tokens i32[S], the state after, and last_token after. `allowed` is bool[S, V]."""
    vocab = logits.shape[1]
    if variant.edits and state is None:
        state = sampling.empty_state(SLOTS, vocab)
    last = np.full(SLOTS, -7, np.int32)
    masks = None
    if variant.edits:
        masks = pack_masks(np.ones(logits.shape, bool) if allowed is None else allowed)
    last, state, output = compiled(variant)(logits, last, state if variant.edits else None, pack(rows, vocab), masks)
    return np.asarray(output), state, np.asarray(last)


def draw_many(logits: np.ndarray, **row: Any) -> np.ndarray:
    """MANY draws from f32[V], each with a seed of its own."""
    rows = [{"temperature": 1.0, "seed": seed, **row} for seed in range(MANY)]
    return sample(DRAWS, np.tile(logits, (MANY, 1)), rows)[0]


def distribution(
    logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """f64[V]: the definition. min-p, top-k and top-p in this order, each on what the one before it left."""
    scaled = logits.astype(np.float64) / temperature
    mass = np.exp(scaled - scaled.max())
    mass[mass < min_p] = 0.0
    order = np.argsort(-mass)
    if top_k:
        mass[order[top_k:]] = 0.0
    share = np.cumsum(mass[order]) / mass.sum()
    mass[order[np.searchsorted(share, top_p) + 1 :]] = 0.0  # the token that reaches top_p stays
    return mass / mass.sum()


def random_logits(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 4).astype(np.float32)


def edited_definition(logits: np.ndarray, row: dict[str, Any], state: SamplingState) -> np.ndarray:
    """f64[V]: bias, repetition over prompt and output, frequency and presence over the output."""
    slot = row["slots"]
    counts = np.asarray(state.output_counts)[slot].astype(np.float64)
    out = logits.astype(np.float64) + np.asarray(state.bias)[slot]
    seen = np.asarray(state.in_prompt)[slot] | (counts > 0)
    penalty = row.get("repetition_penalty", 1.0)
    out[seen] = np.where(out[seen] > 0, out[seen] / penalty, out[seen] * penalty)
    return out - counts * row.get("frequency_penalty", 0.0) - (counts > 0) * row.get("presence_penalty", 0.0)


def random_state(seed: int = 0) -> SamplingState:
    rng = np.random.default_rng(seed)
    bias = np.where(rng.random((SLOTS, V)) < 0.1, rng.choice([-100, -3, 2, 100], (SLOTS, V)), 0)
    return SamplingState(
        rng.poisson(0.5, (SLOTS, V)).astype(np.int16),  # type: ignore[arg-type]
        rng.random((SLOTS, V)) < 0.3,  # type: ignore[arg-type]
        bias.astype(np.float32),  # type: ignore[arg-type]
    )
