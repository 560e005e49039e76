"""Runs a model's decoder layers one by one over samples of text, in float32, and looks at their linear layers.

A layer's parameters are read when it is its turn. What a linear layer is given, and whether that is the very output
of a norm, is seen while the layer is traced: family files say nothing of quantization.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jserve.batch import AttentionRows, LayerKV, StateRows, StepContext, pytree
from jserve.checkpoint import Checkpoint
from jserve.config import ModelConfig
from jserve.errors import ConfigError
from jserve.layers.build import Build
from jserve.layers.linear import Linear
from jserve.layers.norm import LayerNorm, RMSNorm
from jserve.layers.rope import inverse_frequencies, rope_table
from jserve.models.blueprint import Blueprint
from jserve.models.causal_lm import CausalLM, DecoderLayer
from jserve.runtime.platform import make_mesh
from jserve.runtime.programs import Programs
from jserve.runtime.shapes import EngineShape
from jserve.weights.load import Parameter, parameters, place, resolve_names
from pallas_kernels.paged_attention import prepare

Path = tuple[str, ...]
Tensors = Mapping[str, np.ndarray]
PAGE = 32


@pytree
@dataclass(frozen=True, slots=True)
class Seen:
    """What a linear layer was given, summed over tokens."""

    gram: jax.Array
    """f32[inputs, inputs]"""
    magnitude: jax.Array
    """f32[inputs], of absolute values."""


class DecoderLayers:
    """The decoder layers of a model, for samples of `length` tokens."""

    def __init__(self, checkpoint: Checkpoint, family: type[CausalLM], config: ModelConfig, length: int) -> None:
        if not config.layers_are_apart:
            raise ConfigError(
                f"{checkpoint.path}: some layers of this model read what others keep, or a table of their own, and "
                "cannot run one by one; take --quantization when it is served, which rounds without samples"
            )
        self._checkpoint = checkpoint
        self._mesh = make_mesh(1)
        build = Build(jnp.dtype("float32"), jnp.dtype("float32"), self._mesh, attention="xla")
        pages = -(-length // PAGE)
        shape = EngineShape(1, length, length, PAGE, pages, config.vocab_size, num_snapshots=0)
        blueprint = Blueprint(family, config, build)
        self._model = blueprint.abstract_model()
        self._wanted = parameters(self._model)
        self.names = resolve_names(self._wanted, checkpoint.tensors())
        paths = {id(module): tuple(map(str, path)) for path, module in nnx.iter_modules(self._model)}
        self._paths = [paths[id(layer)] for layer in self._model.layers]
        kv = Programs(blueprint, shape).abstract_state().kv
        self._empty = jax.tree.map(lambda pages: jnp.zeros(pages.shape, pages.dtype), kv)
        self._context = _context(config, shape)

    def __len__(self) -> int:
        return len(self._paths)

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """i32[S, L] to what the first layer is given, f32[S, L, E]."""
        inside = {p.variable for number in range(len(self)) for p in self.parameters(number)}
        arrays = [p if p.variable in inside else self._read(p, {}) for p in self._wanted]
        graph, abstract = nnx.split(self._model, nnx.Param)
        model = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(abstract), arrays))
        return np.stack([np.asarray(model.embed(jnp.asarray(row), self._context.positions)) for row in tokens])

    def layer(self, number: int) -> DecoderLayer:
        """Abstract."""
        return self._model.layers[number]

    def parameters(self, number: int) -> list[Parameter]:
        """Those of one layer, in its own order."""
        path = self._paths[number]
        return [p for p in self._wanted if p.module[: len(path)] == path]

    def path(self, number: int) -> Path:
        """Where a layer is in the model."""
        return self._paths[number]

    def fill(self, number: int, replaced: Tensors) -> tuple[jax.Array, ...]:
        """The layer's parameters out of the checkpoint, or out of `replaced` where this has a tensor."""
        return tuple(self._read(parameter, replaced) for parameter in self.parameters(number))

    def fed_by(self, number: int) -> dict[Path, Path]:
        """The linear layers that are given the very output of a norm, and that norm; paths within the layer."""
        layer = self.layer(number)
        sources: dict[Path, Path] = {}

        def trace(weights: Any, x: jax.Array) -> jax.Array:
            built = nnx.merge(nnx.graphdef(layer), weights)
            notes = _note(built)
            y, _ = built(x, self._empty[number], self._context)
            answers = {id(note.answer): path for path, note in notes.items() if not isinstance(note.module, Linear)}
            for path, note in notes.items():
                if isinstance(note.module, Linear) and id(note.inputs) in answers:
                    sources[path] = answers[id(note.inputs)]
            return y

        tokens, width = self._context.positions.size, self._model.config.hidden_size
        jax.eval_shape(trace, nnx.state(layer, nnx.Param), jax.ShapeDtypeStruct((tokens, width), jnp.float32))
        return sources

    def observe(self, number: int, weights: tuple[jax.Array, ...], x: np.ndarray) -> dict[Path, Seen]:
        """What each linear layer of the layer is given over all samples, by its path. x: f32[S, L, E]."""
        graph, state = self._tree(number, weights)
        total: tuple[Seen, ...] | None = None
        for row in x:
            seen = _observe(graph, state, jnp.asarray(row), self._empty[number], self._context)
            total = seen if total is None else jax.tree.map(jnp.add, total, seen)
        assert total is not None
        return dict(zip(linear_paths(self.layer(number)), total, strict=True))

    def advance(self, number: int, weights: tuple[jax.Array, ...], x: np.ndarray) -> np.ndarray:
        """The layer's outputs. x: f32[S, L, E]."""
        graph, state = self._tree(number, weights)
        empty, context = self._empty[number], self._context
        return np.stack([np.asarray(_apply(graph, state, jnp.asarray(row), empty, context)) for row in x])

    def _tree(self, number: int, weights: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        graph, abstract = nnx.split(self.layer(number), nnx.Param)
        return graph, jax.tree.unflatten(jax.tree.structure(abstract), weights)

    def _read(self, parameter: Parameter, replaced: Tensors) -> jax.Array:
        def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
            spelled = self.names[parameter.absolute(name)]
            return replaced[spelled][index] if spelled in replaced else self._checkpoint.read(spelled, index)

        return place(parameter, self._mesh, partial(parameter.source.read, read))


def linear_paths(layer: DecoderLayer) -> list[Path]:
    """Names of all linear layers in a decoder layer."""
    return [tuple(map(str, path)) for path, module in nnx.iter_modules(layer) if isinstance(module, Linear)]


def module_at(layer: nnx.Module, path: Path) -> Any:
    """The module of a path."""
    for name in path:
        layer = layer[int(name)] if isinstance(layer, nnx.List) else getattr(layer, name)
    return layer


class _Noting:
    """A module that notes what it is given and what it answers."""

    inputs: jax.Array
    answer: jax.Array

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x: jax.Array) -> jax.Array:
        self.inputs, self.answer = x, self.module(x)
        return self.answer


def _note(layer: DecoderLayer) -> dict[Path, _Noting]:
    """Have the linear layers and norms of a layer, which is being traced, note their calls."""
    notes = {}
    for path, module in list(nnx.iter_modules(layer)):
        if isinstance(module, Linear | RMSNorm | LayerNorm):
            note = _Noting(module)
            *owner, name = map(str, path)
            object.__setattr__(module_at(layer, (*owner,)), name, note)
            notes[(*owner, name)] = note
    return notes


@partial(jax.jit, static_argnums=0)
def _observe(graph: Any, weights: Any, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[Seen, ...]:
    layer = nnx.merge(graph, weights)
    paths = linear_paths(layer)
    notes = _note(layer)
    layer(x, kv, context)

    def seen(inputs: jax.Array) -> Seen:
        gram = jnp.dot(inputs.T, inputs, precision=jax.lax.Precision.HIGHEST)
        return Seen(gram, jnp.abs(inputs).sum(0))

    return tuple(seen(notes[path].inputs.astype(jnp.float32)) for path in paths)


@partial(jax.jit, static_argnums=0)
def _apply(graph: Any, weights: Any, x: jax.Array, kv: LayerKV, context: StepContext) -> jax.Array:
    y, _ = nnx.merge(graph, weights)(x, kv, context)
    return y


def _context(config: ModelConfig, shape: EngineShape) -> StepContext:
    """The context of a step whose only row is a whole sample."""
    length = shape.max_model_len
    positions = jnp.arange(length, dtype=jnp.int32)
    row = jnp.arange(shape.num_pages, dtype=jnp.int32)[None]
    bounds, count = jnp.array([0, length], jnp.int32), jnp.array([length], jnp.int32)
    sizes = {"tokens": length, "pages": shape.num_pages, "page_size": shape.page_size, "implementation": "xla"}
    ropes = [inverse_frequencies(rope, config.head_dim, length) for rope in config.ropes]
    if config.windows_are_chunks and length > min(window for window in config.windows if window is not None):
        raise ConfigError(f"--sequence-length is {length}, more than this model attends to at once; lower it")
    return StepContext(
        positions=positions,
        write_slots=positions,
        is_real=jnp.ones(length, jnp.bool_),
        rows=AttentionRows(row, bounds, count),
        chunks=AttentionRows(row, bounds, count),
        ropes=tuple(rope_table(positions, frequencies, factor) for frequencies, factor in ropes),
        attention_plans=tuple(
            prepare(
                row,
                bounds,
                count,
                sliding_window=None if config.windows_are_chunks else window,
                **sizes,  # type: ignore[arg-type]
            )
            for window in config.windows
        ),
        states=StateRows.of(jnp.zeros(1, jnp.int32), jnp.zeros(length, jnp.int32), bounds, count),
    )
