"""Which model is built: its class, its shape, its types and kernels, and how its weights are quantized."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from flax import nnx

from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.layers.dense import Dense
from jserve.layers.quantized import WeightPlan, quantize

Model = TypeVar("Model", bound=nnx.Module)


@dataclass(frozen=True, slots=True)
class Blueprint(Generic[Model]):
    """All that a model without arrays is made from. Hashable."""

    family: type[Model]
    config: ModelConfig
    build: Build
    weights: WeightPlan | None = None
    """How weights are quantized; None where they are not."""

    def abstract_model(self, *, bf16_as_uint16: bool = False) -> Model:
        """The model without arrays; with `bf16_as_uint16` the one of small batches."""
        build = replace(self.build, bf16_as_uint16=bf16_as_uint16 or self.build.bf16_as_uint16)
        model: Model = nnx.eval_shape(partial(self._make, build))
        if self.weights is not None:
            quantize(model, self.weights)
        return model

    def _make(self, build: Build) -> Model:
        """With what follows the pooling, which is part of no family."""
        model = self.family(build, self.config)  # type: ignore[call-arg]
        model.dense = nnx.List([Dense(build, each) for each in self.config.dense])  # type: ignore[attr-defined]
        return model
