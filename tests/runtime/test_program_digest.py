"""What stored programs depend on: every field of the configuration, whatever it is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jserve.config import MixtureConfig, ModelConfig, RopeConfig
from jserve.config.deepseek import GroupRouting, LatentConfig
from jserve.layers.build import Build, mesh_over
from jserve.layers.quantized import WeightPlan
from jserve.models.bert import BertModel
from jserve.models.blueprint import Blueprint
from jserve.models.llama import LlamaForCausalLM
from jserve.quant import OnLoad
from jserve.runtime.encoder_runner import EncoderPrograms
from jserve.runtime.program_digest import configuration_key, describe
from jserve.runtime.program_keys import Logprobs, Pool, Sample, Score, Step
from jserve.runtime.programs import Programs
from jserve.runtime.sampling import Variant
from jserve.runtime.shapes import Bucket, EngineShape

MESH = mesh_over(jax.devices()[:1])
ROPE = RopeConfig(10000.0)
MIXTURE = MixtureConfig(4, 2, 32, routing=GroupRouting("softmax"))
LATENT = LatentConfig(4, 8, 8, 16)
CONFIG = ModelConfig("A", 32, 16, 32, 2, 2, 2, 8, 64, 1e-5, ROPE, mixture=MIXTURE, latent=LATENT)
BUILD = Build(jnp.dtype("float32"), jnp.dtype("float32"), MESH)
PLAN = WeightPlan(OnLoad("int8"))
BLUEPRINT = Blueprint(LlamaForCausalLM, CONFIG, BUILD, PLAN)
SHAPE = EngineShape(2, 8, 64, 4, 8, 32)
PROGRAMS = Programs(BLUEPRINT, SHAPE)
ENCODER = EncoderPrograms(Blueprint(BertModel, CONFIG, BUILD), SHAPE)


def changed(value: Any) -> list[tuple[str, Any]]:
    """The value with one field at a time changed, in it and in all that it holds."""
    versions = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            for name, other in changed(inner):
                versions.append((f"{field.name}.{name}", dataclasses.replace(value, **{field.name: other})))
        versions.append((field.name, dataclasses.replace(value, **{field.name: "changed"})))
    return versions


@pytest.mark.parametrize("programs", [PROGRAMS, ENCODER], ids=["decoder", "encoder"])
def test_each_field_of_the_configuration_changes_the_key(programs: Any) -> None:
    versions = changed(programs)
    keys = {name: configuration_key(version, MESH) for name, version in versions}
    assert len({configuration_key(programs, MESH), *keys.values()}) == len(keys) + 1, "a field changes nothing"
    kinds = (Build, ModelConfig, EngineShape, RopeConfig, MixtureConfig, GroupRouting, LatentConfig)
    for kind in (*kinds, *([WeightPlan, OnLoad] if programs is PROGRAMS else [])):
        for field in dataclasses.fields(kind):
            assert any(name.split(".")[-1] == field.name for name in keys), f"{kind.__name__}.{field.name} is missing"


def test_the_key_is_the_same_for_equal_configurations_and_in_every_process() -> None:
    floats = frozenset({"model.a", "model.b", "model.c"})
    plan = WeightPlan(OnLoad("int8"), floats)
    same = WeightPlan(OnLoad("int8"), frozenset(sorted(floats, reverse=True)))
    assert describe(plan) == describe(same)
    assert "at 0x" not in configuration_key(PROGRAMS, MESH)


def test_what_cannot_be_described_is_an_error_and_not_an_address() -> None:
    with pytest.raises(TypeError, match="object has no description"):
        describe((1, object()))


def test_programs_of_different_kinds_and_one_size_have_different_keys() -> None:
    keys = [Score(16), Pool(16), Logprobs(16), Sample(16, Variant()), Step(Bucket(16, 16)), Step(Bucket(16, 4))]
    assert len(set(keys)) == len(set(map(describe, keys))) == len(set(map(str, keys))) == len(keys)
