"""What a model's file says of its rotary embedding, checked field by field. Imports no jax.

Fields that are not known are refused: each of them changes what the model computes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jserve.config.fields import Fields
from jserve.errors import CheckpointError

ROPE_KINDS = ("default", "linear", "llama3", "yarn", "longrope", "freq_factors", "proportional")
_KIND_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
    "freq_factors": ("factors",),
    "proportional": ("factor",),
}
"""Fields that each kind reads. Those of another kind are ignored, as in transformers."""
_COMMON_FIELDS = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
    *("max_position_embeddings", "finetuned"),
)
"""The last two change nothing: the length stands beside, and how a model was trained is past."""
_NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
_LISTS = {"longrope": ("short_factor", "long_factor"), "freq_factors": ("factors",)}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `scaling` is the checkpoint's own dictionary, without theta, or empty."""

    theta: float
    kind: str = "default"
    scaling: tuple[tuple[str, Any], ...] = ()
    partial: float = 1.0
    """The share of a head's dimensions that is rotated, the first ones."""
    interleaved: bool = False
    """Whether neighbours make a pair that is rotated, and not the two halves."""
    head_dim: int | None = None
    """Dimensions of a head, where they are not those of `ModelConfig.head_dim`."""

    def get(self, key: str, default: Any = None) -> Any:
        """A field of the scaling dictionary."""
        return dict(self.scaling).get(key, default)

    def length(self, positions: int) -> int:
        """Tokens that the model is for, where its file says `max_position_embeddings` of `positions`.

        YaRN and linear scaling may be added to a file whose number stays what it was (Qwen's README does).
        """
        if self.kind == "yarn":
            return max(positions, int(self.get("original_max_position_embeddings") * self.get("factor")))
        return max(positions, int(positions * self.get("factor"))) if self.kind == "linear" else positions


def read_rope(raw: dict[str, Any], *, source: Path | str) -> RopeConfig:
    """Rope of a configuration, in the old spelling (rope_theta, rope_scaling) or the new (rope_parameters).

    Where there are parameters for each type of layer, those of the layers that see everything.
    """
    parameters = _of_full_attention(Fields(raw, source).dictionary("rope_parameters"), source)
    merged = {**_of_full_attention(Fields(raw, source).dictionary("rope_scaling"), source), **parameters}
    kind = _kind(merged, source)
    _check_fields(merged, kind, source)
    theta = _number(merged, raw, "rope_theta", 10000.0, source)
    partial = _number(merged, raw, "partial_rotary_factor", 1.0, source)
    if partial > 1:
        raise CheckpointError(f"{source}: partial_rotary_factor is {partial:g} but must be at most 1")
    interleaved = Fields(raw, source).boolean("rope_interleaved", default=False)
    if kind == "default":
        return RopeConfig(theta, kind, (), partial, interleaved)
    positions = Fields(raw, source).integer("max_position_embeddings", default=2048)
    scaling = {name: value for name, value in merged.items() if name in _KIND_FIELDS[kind] and value is not None}
    original = raw.get("original_max_position_embeddings") or merged.get("original_max_position_embeddings")
    checked = Fields({"original_max_position_embeddings": original}, source)
    original = checked.integer("original_max_position_embeddings", default=positions)
    scaling["original_max_position_embeddings"] = original
    if kind == "longrope" and not scaling.get("factor"):
        scaling["factor"] = positions / original
    values = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in sorted(scaling.items()))
    return RopeConfig(theta, kind, values, partial, interleaved)


def local_rope(raw: dict[str, Any], whole: RopeConfig, *, source: Path | str) -> RopeConfig:
    """Rope of the layers with a window; `whole` where the file does not tell them apart."""
    parameters = Fields(raw, source).dictionary("rope_parameters").get("sliding_attention")
    if parameters is not None:
        return read_rope({**raw, "rope_scaling": None, "rope_parameters": parameters}, source=source)
    theta = Fields(raw, source).optional_number("rope_local_base_freq")
    return whole if theta is None else RopeConfig(theta, partial=whole.partial, interleaved=whole.interleaved)


def _of_full_attention(parameters: dict[str, Any], source: Path | str) -> dict[str, Any]:
    """The parameters themselves, or of those for each type of layer the ones of `full_attention`."""
    if "full_attention" not in parameters:
        return parameters
    return Fields(parameters, source).dictionary("full_attention")


def _kind(merged: dict[str, Any], source: Path | str) -> str:
    kind = Fields(merged, source).text("rope_type", default=Fields(merged, source).text("type", default="default"))
    if kind == "su" or (kind == "yarn" and "short_factor" in merged):
        return "longrope"  # its names in the first weeks of Phi-3
    if kind not in ROPE_KINDS:
        raise CheckpointError(
            f"{source}: rope scaling {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}"
        )
    return kind


def _check_fields(merged: dict[str, Any], kind: str, source: Path | str) -> None:
    known = {*_COMMON_FIELDS, *(name for names in _KIND_FIELDS.values() for name in names)}
    unknown = sorted(str(name) for name in merged if name not in known)
    if unknown:
        raise CheckpointError(
            f"{source}: the rope parameters have {unknown[0]!r}, which is not supported; supported are "
            f"{', '.join(sorted(known))}"
        )
    fields = Fields(merged, source)
    for name in _KIND_FIELDS.get(kind, ()):
        if name in _LISTS.get(kind, ()):
            fields.numbers(name)
        elif name == "truncate":
            fields.boolean(name, default=True)
        elif name in _NEEDED.get(kind, ()):
            fields.required_number(name)
        elif merged.get(name) != 0:
            fields.optional_number(name)


def _number(merged: dict[str, Any], raw: dict[str, Any], name: str, default: float, source: Path | str) -> float:
    """A number that stands among the parameters, or in the old spelling beside them."""
    holder = merged if merged.get(name) is not None else raw
    return Fields(holder, source).number(name, default=default)
