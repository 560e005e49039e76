"""A model of an architecture that is not known may have the shape of one that is: which one, by its tensors."""

from typing import Any

import jax.numpy as jnp

from jserve.checkpoint import Checkpoint
from jserve.config import ModelConfig
from jserve.errors import CheckpointError, JserveError
from jserve.layers.build import Build
from jserve.models.blueprint import Blueprint
from jserve.models.causal_lm import CausalLM
from jserve.models.registry import ARCHITECTURES, ENCODERS, UnknownArchitectureError, resolve, resolve_encoder
from jserve.runtime import platform
from jserve.weights.load import parameters, resolve_names, unused_weights

_NAMED = (*ARCHITECTURES, *ENCODERS)


def resolve_decoder(checkpoint: Checkpoint) -> tuple[type[CausalLM], ModelConfig]:
    """`registry.resolve` of a checkpoint. Of an architecture that is not known, the error says which it looks like."""
    try:
        return resolve(checkpoint.config(), source=checkpoint.path)
    except UnknownArchitectureError as error:
        raise _with_look_alike(error, checkpoint) from None


def _with_look_alike(error: UnknownArchitectureError, checkpoint: Checkpoint) -> CheckpointError:
    """With what to do next where all tensors of the files are those of a known architecture."""
    name = _look_alike(checkpoint)
    if name is None:
        return error
    return CheckpointError(
        f"{error.unknown}. It looks like {name}: its {len(checkpoint.tensors()):,} tensors have the names and shapes "
        f"of one. If it computes the same, which they do not say, start with --architecture {name}"
    )


def _look_alike(checkpoint: Checkpoint) -> str | None:
    """The first architecture of which the files have every tensor, and no other."""
    if not checkpoint.tensors() or checkpoint.config().get("quantization_config"):
        return None
    # A plain name before the one of a model without a head, or with something to see by.
    names = sorted(_NAMED, key=lambda name: (not name.endswith("ForCausalLM"), name != "LlamaForCausalLM"))
    return next((name for name in names if _fits(name, checkpoint)), None)


def _fits(name: str, checkpoint: Checkpoint) -> bool:
    raw: dict[str, Any] = {**checkpoint.config(), "architectures": [name]}
    build = Build(jnp.dtype("float32"), jnp.dtype("float32"), platform.make_mesh(1))
    try:
        encoder = resolve_encoder(raw, source=checkpoint.path)
        family, config = encoder if encoder is not None else resolve(raw, source=checkpoint.path)
        wanted = parameters(Blueprint(family, config, build).abstract_model())
        used = set(resolve_names(wanted, checkpoint.tensors()).values())
    except (JserveError, ArithmeticError, LookupError, TypeError, ValueError):  # a stranger's fields may mean anything
        return False
    return not unused_weights(checkpoint.tensors(), used)
