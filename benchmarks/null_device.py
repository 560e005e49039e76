"""An engine over programs that compute nothing, so that all of a step's time is the host's.

Each program has the arguments, results and donations of the real one, weight by weight and layer by layer, so a
call costs the host what it costs in earnest. Only the work inside is gone, and the arrays of weights and of the KV
cache are a few bytes each, so that any context fits. All tokens are `TOKEN`.
"""

from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp

from benchmarks.presets import LLAMA_3_1_8B, write_model
from jserve.batch import EngineState, SamplingState, Weights
from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.runtime import memory, prepare
from jserve.runtime.executables import Program
from jserve.runtime.program_keys import Sample, Step
from jserve.runtime.programs import SAMPLING_FIELDS, Programs
from jserve.runtime.sampling import Variant
from jserve.runtime.shapes import Bucket
from jserve.runtime.start import start_runner
from jserve.runtime.step import StepLayout

TOKEN = 5
NARROW: dict[str, Any] = {
    **LLAMA_3_1_8B,
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


class NullPrograms(Programs):
    """Programs of the same signatures without work."""

    def step(self, bucket: Bucket) -> Program:
        """See `Programs.step`."""
        hidden_size, vocab = self.config.hidden_size, self.shape.vocab_size

        def step(weights: Weights, state: Weights, last_token: jax.Array, packed: jax.Array) -> Any:
            hidden = None if bucket.is_decode else jnp.zeros((bucket.tokens, hidden_size), self.build.activations)
            return state, jnp.zeros((bucket.rows, vocab), jnp.float32), hidden

        def lower() -> jax.stages.Lowered:
            size = StepLayout(bucket, self.shape.page_updates(bucket)).size
            null = jax.jit(step, donate_argnums=1, keep_unused=True)
            weights = self._weights(self.blueprint.abstract_model())
            return self._lower(null, weights, self.abstract_state().leaves, self._slots(), self._integers(size))

        return Program(Step(bucket), lower)

    def sampler(self, rows: int, variant: Variant) -> Program:
        """See `Programs.sampler`."""

        def sample(
            logits: jax.Array, last_token: jax.Array, state: SamplingState | None, packed: jax.Array, masks: Any
        ) -> Any:
            return last_token, state, jnp.full(rows, TOKEN, jnp.int32)

        def lower() -> jax.stages.Lowered:
            null = jax.jit(sample, donate_argnums=(1, 2), keep_unused=True)
            logits = jax.ShapeDtypeStruct((rows, self.shape.vocab_size), jnp.float32, sharding=self.by_rows(rows))
            state = self.abstract_sampling() if variant.edits else None
            masks = self.masks(rows) if variant.edits else None
            return self._lower(null, logits, self._slots(), state, self._integers(SAMPLING_FIELDS, rows), masks)

        return Program(Sample(rows, variant), lower)

    def abstract_state(self) -> EngineState:
        """As many arrays as the real one, none of a size that counts."""
        real = Programs.abstract_state(self)
        kv = jax.tree.map(lambda pages: self._abstract((1, 1, 1, 1), pages.dtype), real.kv)
        return EngineState(kv, real.page_table)


def start_null_engine(layers: int, rows: int, max_model_len: int, num_pages: int, page_size: int) -> EngineCore:
    """An engine of `layers` layers for `rows` sequences, with the sizes of a GPU's."""
    page_bytes = 2 * layers * page_size * 8 * 4  # of the narrow model's one KV head
    config = EngineConfig(
        model=write_model("narrow", NARROW, layers),
        load_format="dummy",
        dtype="float32",
        max_model_len=max_model_len,
        max_num_seqs=rows,
        max_num_batched_tokens=4096,
        page_size=page_size,
        kv_cache_memory_bytes=num_pages * page_bytes,
        compile_cache_dir="",
    )
    with patch.object(prepare, "Programs", NullPrograms), patch.object(memory, "device_limit", lambda _: 1 << 50):
        started = start_runner(config, lambda *_: None)
        for program in started.runner.table.optional():
            match program.key:
                case Step(bucket) if bucket.is_decode:
                    started.runner.table.add(program)
                case Sample(_, variant) if variant == Variant():
                    started.runner.table.add(program)
    return EngineCore(started)
