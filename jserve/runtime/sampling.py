"""From logits to tokens, on the device. What a batch does not use, it does not pay for (see `Variant`), and what only a
few of its rows use is done for those alone (see `few_rows`).

Filters are thresholds on the logits (`pallas_kernels.sampling`): no sort of the vocabulary.
A draw is a race of exponential clocks, one per token, each a function of (seed, how many tokens the row has
generated, token) alone. So a request's tokens do not depend on its neighbours; and where rounding moves the
logits a little, as another batch shape does, the winner changes only where two clocks all but tie. (A search in the
running sum of the probabilities would move with the rounding of every token before.)
"""

import itertools
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jserve.batch import SamplingInput, SamplingState
from jserve.protocol import MAX_LOGPROBS
from pallas_kernels.sampling import kept_threshold

Logits = jax.Array
"""f32[S, V]"""

RowChoice = Callable[[Logits, SamplingState | None, jax.Array, jax.Array | None], jax.Array]
"""(logits, state, packed, masks) to tokens i32[S]."""

TakeRows = Callable[[Logits, jax.Array], Logits]
"""f32[S, V] and row numbers i32[F] to f32[F, V]."""

INTEGER_FIELDS = 5
MAX_COUNT = np.iinfo(np.int16).max
BLOCK = 256
"""Tokens per block of the two-level search for the largest."""
SMALL_BLOCK = 64
"""Likewise of the search for the largest few, which looks through this many for each of them."""


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """What a batch needs of sampling; one small executable each."""

    draws: bool = False
    """Some row has a temperature."""
    filters: bool = False
    """Some row has top-k or top-p, whose thresholds take many passes over the logits."""
    edits: bool = False
    """Some row has penalties, a bias or a mask."""

    def covers(self, other: "Variant") -> bool:
        """Whether this variant gives every row of a batch that needs `other` what it asks for."""
        return all(mine >= theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))

    def __str__(self) -> str:
        used = [name for name in ("draws", "filters", "edits") if getattr(self, name)]
        return "+".join(used) or "greedy"


VARIANTS = (Variant(), Variant(True), Variant(True, True), Variant(True, True, True))
"""All that are compiled, the cheapest first; each contains those before it."""

COVERING = {
    needed: tuple(variant for variant in VARIANTS if variant.covers(needed))
    for needed in (Variant(*kind) for kind in itertools.product((False, True), repeat=3))
}
"""By what a batch needs, the variants that serve it, the cheapest first."""

NOT_FINITE = -1
"""In place of the token of a row whose logits hold NaN or infinity."""
SCORE_COLUMNS = 2 + 2 * MAX_LOGPROBS
"""A token's logprob, its rank, the best ids, their logprobs; i32 bits."""


def few_rows(rows: int) -> int:
    """F, how many rows of a step are filtered, edited, or have their logprobs taken at once where most rows need
    none of it; 0 where a step is too small to take it apart.
    """
    few = max(4, rows // 8)
    return few if few < rows else 0


def split_sampling(packed: jax.Array) -> SamplingInput:
    """i32[11, S] to its fields; the float fields travel as bits."""
    rows = list(packed[:INTEGER_FIELDS])
    rows += [jax.lax.bitcast_convert_type(row, jnp.float32) for row in packed[INTEGER_FIELDS:]]
    return SamplingInput(**{field.name: row for field, row in zip(fields(SamplingInput), rows, strict=True)})


def make_sampler(
    variant: Variant, split_rows: Callable[[RowChoice], RowChoice] = lambda choose: choose
) -> Callable[..., tuple[jax.Array, SamplingState | None, jax.Array]]:
    """The function to compile: (logits, last_token, state, packed, masks) to (last_token, state, output).

    last_token: i32[R]; packed: i32[11, S]; masks: i32[S, ceil(V / 32)], a bit for each token that may be
    chosen. `state` and `masks` are None unless the variant edits. The output is i32[S] of tokens, or NOT_FINITE.
    `split_rows` may share the rows out over devices: no row needs another.
    """
    choose = _chooser(variant)

    def sample(
        logits: Logits,
        last_token: jax.Array,
        state: SamplingState | None,
        packed: jax.Array,
        masks: jax.Array | None = None,
    ) -> tuple[jax.Array, SamplingState | None, jax.Array]:
        state = _slide(state, split_sampling(packed))
        tokens = split_rows(choose)(logits, state, packed, masks)
        return *_note(split_sampling(packed).slots, tokens, last_token, state), tokens

    return sample


def make_few_sampler(
    take_rows: TakeRows,
) -> Callable[..., tuple[jax.Array, SamplingState, jax.Array]]:
    """The function to compile: (logits, output, last_token, state, packed, masks) to (last_token, state, output).

    Chooses anew for F of the S rows, with everything that a row may ask for. packed: i32[12, F], whose last line
    has the rows' numbers, S for padding; masks: i32[F, ceil(V / 32)]; output: i32[S], that of the sampler before.
    """
    choose = _chooser(VARIANTS[-1])

    def sample(
        logits: Logits,
        output: jax.Array,
        last_token: jax.Array,
        state: SamplingState,
        packed: jax.Array,
        masks: jax.Array,
    ) -> tuple[jax.Array, SamplingState, jax.Array]:
        packed, rows = packed[:-1], packed[-1]
        slid = _slide(state, split_sampling(packed))
        tokens = choose(take_rows(logits, rows), slid, packed, masks)
        last_token, after = _note(split_sampling(packed).slots, tokens, last_token, slid)
        assert after is not None
        return last_token, after, output.at[rows].set(tokens, mode="drop")

    return sample


def make_few_logprobs(take_rows: TakeRows) -> Callable[[Logits, jax.Array, jax.Array], jax.Array]:
    """The function to compile: (logits, output i32[S], rows i32[F]) to i32[F, SCORE_COLUMNS] of the rows' tokens."""

    def logprobs(logits: Logits, output: jax.Array, rows: jax.Array) -> jax.Array:
        return logprobs_of(take_rows(logits, rows), jnp.take(output, rows, mode="clip"))

    return logprobs


def take_rows(logits: Logits, rows: jax.Array) -> Logits:
    """f32[F, V]: the rows of these numbers; the last for numbers beyond it."""
    return jnp.take(logits, rows, axis=0, mode="clip")


def _chooser(variant: Variant) -> RowChoice:
    def choose(logits: Logits, state: SamplingState | None, packed: jax.Array, masks: jax.Array | None) -> jax.Array:
        batch = split_sampling(packed)
        edited = logits if state is None else edit_logits(logits, state, batch)
        if masks is not None:
            edited = jnp.where(unpack_masks(masks, logits.shape[1]), edited, -jnp.inf)
        tokens = first_largest(edited)
        if variant.draws:
            tokens = jnp.where(batch.temperature > 0, draw(edited, batch, filters=variant.filters), tokens)
        return jnp.where(jnp.isfinite(jnp.max(_block_maxima(logits)[1], axis=-1)), tokens, NOT_FINITE)

    return choose


def _slide(state: SamplingState | None, batch: SamplingInput) -> SamplingState | None:
    """The state without the tokens that leave the rows' windows."""
    if state is None:
        return None
    counts = state.output_counts.at[batch.slots, batch.leaving].add(-1, mode="drop")
    return SamplingState(counts, state.in_prompt, state.bias)


def _note(
    slots: jax.Array, tokens: jax.Array, last_token: jax.Array, state: SamplingState | None
) -> tuple[jax.Array, SamplingState | None]:
    """`last_token` and the state after these tokens. A row without one ends, but a step may be on its way for it."""
    tokens = jnp.maximum(tokens, 0)
    last_token = last_token.at[slots].set(tokens, mode="drop")
    if state is not None:
        state = SamplingState(_count(state.output_counts, slots, tokens), state.in_prompt, state.bias)
    return last_token, state


def _count(counts: jax.Array, slots: jax.Array, tokens: jax.Array) -> jax.Array:
    """i16[R, V] with one more of each row's token; a count stays at its largest rather than turn negative."""
    before = counts.at[slots, tokens].get(mode="clip")
    return counts.at[slots, tokens].set(jnp.minimum(before, MAX_COUNT - 1) + 1, mode="drop")


def edit_logits(logits: Logits, state: SamplingState, batch: SamplingInput) -> Logits:
    """Bias, then penalties: repetition (Keskar et al. 2019, section 4.1) over prompt and output, frequency and
    presence (OpenAI) over the output. Where a row has a window, its counts are of all tokens in it (llama.cpp).
    """
    take = partial(jnp.take, indices=batch.slots, axis=0, mode="clip")
    counts = take(state.output_counts).astype(jnp.float32)
    logits = logits + take(state.bias)
    seen = take(state.in_prompt) | (counts > 0)
    penalty = jnp.where(seen, batch.repetition_penalty[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = logits - counts * batch.frequency_penalty[:, None]
    return logits - (counts > 0) * batch.presence_penalty[:, None]


def unpack_masks(masks: jax.Array, vocab: int) -> jax.Array:
    """bool[S, V] of i32[S, ceil(V / 32)]: bit t % 32 of word t // 32 says whether token t may be chosen."""
    bits = jnp.right_shift(masks[:, :, None], jnp.arange(32, dtype=jnp.int32)) & 1
    return bits.reshape(masks.shape[0], -1)[:, :vocab] == 1


def draw(logits: Logits, batch: SamplingInput, *, filters: bool) -> jax.Array:
    """i32[S]: a token by temperature, then min-p, top-k and top-p, each on what the one before it left.

    Without `filters` no row has a top-k or a top-p.
    """
    temperature = jnp.where(batch.temperature > 0, batch.temperature, 1.0)[:, None]
    scaled = logits / temperature
    best = jnp.max(scaled, axis=-1, keepdims=True)
    mass = jnp.exp(scaled - best)
    mass = jnp.where(mass >= batch.min_p[:, None], mass, 0.0)
    if filters:
        mass = jnp.where(mass >= kept_threshold(mass, batch.top_k, batch.top_p)[:, None], mass, 0.0)
    return first_largest(mass / _clocks(batch, mass.shape[1]))


def first_largest(x: jax.Array) -> jax.Array:
    """i32[S]: where each row of f32[S, V] has its largest entry, the first of equals.

    `jnp.argmax` reduces pairs, which a CPU does one at a time: 3.5 ms for [32, 49152], this 0.14 ms.
    """
    blocks, maxima = _block_maxima(x)
    block = _first_equal(maxima)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return jnp.minimum(block * BLOCK + _first_equal(inside), x.shape[1] - 1)


def _block_maxima(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f32[S, V] in blocks, f32[S, blocks, BLOCK] with minus infinity at the end, and the largest of each block, which
    is NaN where the block holds one.
    """
    rows, vocab = x.shape
    blocks = jnp.pad(x, ((0, 0), (0, -vocab % BLOCK)), constant_values=-jnp.inf).reshape(rows, -1, BLOCK)
    return blocks, jnp.max(blocks, axis=-1)


def _first_equal(x: jax.Array) -> jax.Array:
    """i32[S]: the first place of each row's largest; the last where a NaN leaves none."""
    places = jnp.arange(x.shape[1], dtype=jnp.int32)
    return jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), places, x.shape[1] - 1), axis=-1)


def _clocks(batch: SamplingInput, vocab: int) -> jax.Array:
    """f32[S, V] > 0: independent draws of the exponential distribution. Divided into the probabilities, the
    largest quotient is at each token as often as its probability says (the exponential form of Gumbel-max).
    """
    bits = _hash(
        jnp.arange(vocab, dtype=jnp.uint32)[None],
        batch.output_index.astype(jnp.uint32)[:, None],
        batch.seed.astype(jnp.uint32)[:, None],
    )
    # In the upper half of [0, 1) a float has steps of 2**-24, and 1 itself would be a clock that never rings.
    uniform = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log1p(-uniform)


def _hash(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    """u32 of the broadcast shape, well mixed: pcg3d of Jarzynski and Olano, "Hash functions for GPU rendering",
    JCGT 9(3), 2020.
    """
    x, y, z = (word * jnp.uint32(1664525) + jnp.uint32(1013904223) for word in (x, y, z))
    x += y * z
    y += z * x
    z += x * y
    x, y, z = (word ^ (word >> 16) for word in (x, y, z))
    x += y * z
    return x


def logprobs_of(logits: Logits, tokens: jax.Array) -> jax.Array:
    """i32[S, SCORE_COLUMNS]: of the unmodified logits and the tokens i32[S] that came."""
    normal = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)
    rank = jnp.sum(logits > chosen, axis=-1, keepdims=True, dtype=jnp.int32) + 1
    best, ids = largest(logits, min(MAX_LOGPROBS, logits.shape[1]))
    missing = ((0, 0), (0, MAX_LOGPROBS - best.shape[1]))
    best, ids = jnp.pad(best - normal, missing, constant_values=-jnp.inf), jnp.pad(ids, missing)
    bits = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.int32)
    return jnp.concatenate([bits(chosen - normal), rank, ids, bits(best)], axis=1)


def largest(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """f32[S, count] and i32[S, count]: what `jax.lax.top_k` gives for f32[S, V], the first of equals first.

    They lie in the `count` blocks with the largest maxima, so that most of V is only looked at for these: `top_k`
    goes through a row one by one on a CPU, and sorts all of it on a GPU.
    """
    rows, vocab = x.shape
    if vocab <= 2 * count * SMALL_BLOCK:
        values, ids = jax.lax.top_k(x, count)
        return values, ids
    padded = jnp.pad(x, ((0, 0), (0, -vocab % SMALL_BLOCK)), constant_values=-jnp.inf)
    blocks = padded.reshape(rows, -1, SMALL_BLOCK)
    chosen = jnp.sort(jax.lax.top_k(jnp.max(blocks, axis=-1), count)[1], axis=-1)  # in order, for the first of equals
    inside = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, -1)
    best, places = jax.lax.top_k(inside, count)
    block = jnp.take_along_axis(chosen, places // SMALL_BLOCK, axis=1)
    return best, block * SMALL_BLOCK + places % SMALL_BLOCK


def install(
    state: SamplingState, slot: jax.Array, counts: jax.Array, in_prompt: jax.Array, bias: jax.Array
) -> SamplingState:
    """Set one slot's rows: counts i16[V], in_prompt bool[V], bias f32[V]."""
    return SamplingState(
        state.output_counts.at[slot].set(counts),
        state.in_prompt.at[slot].set(in_prompt),
        state.bias.at[slot].set(bias),
    )


def install_bias(state: SamplingState, slot: jax.Array, bias: jax.Array) -> SamplingState:
    """Set one slot's bias f32[V]."""
    return SamplingState(state.output_counts, state.in_prompt, state.bias.at[slot].set(bias))


def empty_state(slots: int, vocab: int) -> SamplingState:
    """Zeros; on the host, so that the caller chooses where it goes."""
    return SamplingState(
        np.zeros((slots, vocab), np.int16),  # type: ignore[arg-type]
        np.zeros((slots, vocab), np.bool_),  # type: ignore[arg-type]
        np.zeros((slots, vocab), np.float32),  # type: ignore[arg-type]
    )
