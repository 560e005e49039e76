"""DeepSeek's choice of experts: groups first, then experts of the chosen groups, with a bias that only chooses."""

from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from jserve.config import MixtureConfig, ModelConfig
from jserve.layers.build import Build
from jserve.layers.moe import ExpertNames, MixtureOfExperts, Router
from jserve.layers.source import Source, Tensor


class GroupedRouter(Router):
    """DeepSeek-V2 (arXiv:2405.04434, section 2.2.2) and DeepSeek-V3 (arXiv:2412.19437, section 2.1.2).

    `correction` is where checkpoints keep the bias that only chooses: f32[X], or of some families f32[1, X].
    """

    def __init__(
        self, build: Build, config: ModelConfig, mixture: MixtureConfig, source: Source, correction: Tensor
    ) -> None:
        super().__init__(build, config, mixture, source)
        assert mixture.routing is not None
        self.routing = mixture.routing
        # Scores lie within a few thousandths of each other: 8 bits of a bfloat16 would choose other experts.
        exact = replace(build, dtype=jnp.dtype("float32"))
        self.e_score_correction_bias = exact.param(correction, correction.shape) if self.routing.corrected else None

    def choose(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jax.nn.sigmoid(logits) if self.routing.scoring == "sigmoid" else jax.nn.softmax(logits)
        bias = self.e_score_correction_bias
        ranked = self._of_best_groups(scores if bias is None else scores + bias[...])
        _, experts = jax.lax.top_k(ranked, self.mixture.experts_per_token)
        weights = jnp.take_along_axis(scores, experts, axis=-1)
        if self.mixture.normalize:
            weights /= weights.sum(-1, keepdims=True) + 1e-20
        return experts, weights * self.routing.scale

    def _of_best_groups(self, ranked: jax.Array) -> jax.Array:
        """f32[T, X] with minus infinity in place of the experts of groups that are not chosen."""
        count = self.routing.groups
        if count == self.routing.chosen_groups:
            return ranked
        groups = ranked.reshape(ranked.shape[0], count, -1)
        best = jax.lax.top_k(groups, self.routing.group_best)[0].sum(-1)
        chosen = jax.lax.top_k(best, self.routing.chosen_groups)[1]
        is_chosen = (chosen[:, :, None] == jnp.arange(count)).any(1)
        return jnp.where(is_chosen[:, :, None], groups, -jnp.inf).reshape(ranked.shape)


class GroupedMixture(MixtureOfExperts):
    """Experts of a `GroupedRouter`, and the shared experts as one block that every token goes through whole."""

    names: ClassVar = ExpertNames(shared="shared_experts")
    correction: ClassVar[str] = "e_score_correction_bias"
    """The bias that only chooses, relative to the router."""
    correction_rows: ClassVar[int | None] = None
    """1 where it is kept as a matrix of one row."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__(build, config, self.names)

    def make_router(self, build: Build, config: ModelConfig, mixture: MixtureConfig, source: Source) -> Router:
        rows = () if self.correction_rows is None else (self.correction_rows,)
        correction = Tensor(self.correction, (*rows, mixture.num_experts))
        return GroupedRouter(build, config, mixture, source, correction)
