"""Whether a GGUF file's weights stay in its bits, which a start decides where no flag does."""

from jserve.checkpoint import Checkpoint
from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.quant import Gguf, Quantization, detect
from pallas_kernels.packed_matmul import has_native_code


def quantization_of(
    engine_config: EngineConfig, checkpoint: Checkpoint, platform: str, parts: int
) -> Quantization | Gguf | None:
    """The format in which a model is served on so many devices; None: in floating point.

    Raises StartupError where the flags and the files do not go together.
    """
    requested = engine_config.quantization
    if requested in ("gguf", "gguf-a8") and parts > 1:
        raise ConfigError(
            f"--quantization {requested} is for one device, not {parts}; leave --tensor-parallel-size out, or "
            "choose --quantization none, int8 or int4"
        )
    config, tensors = checkpoint.config(), checkpoint.tensors()
    if keeps_bits(engine_config, checkpoint, platform, parts):
        return Gguf.of(tensors)
    return detect(config, requested, tensors, source=checkpoint.path)


def keeps_bits(engine_config: EngineConfig, checkpoint: Checkpoint, platform: str, parts: int) -> bool:
    """Whether weights stay in a file's bits without a flag: on one CPU, where native products are faster so."""
    is_asked = engine_config.quantization is None and engine_config.load_format != "dummy"
    is_plain = checkpoint.format == "gguf" and not checkpoint.config().get("quantization_config")
    return is_asked and is_plain and platform == "cpu" and parts == 1 and has_native_code()
