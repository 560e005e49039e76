"""What stored programs depend on: the whole frozen configuration of an engine, and the environment, as text.

Nothing is listed by hand that could be forgotten: every field of every part is described, whatever it is.
"""

import hashlib
import os
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib.version
import numpy as np

from jserve.runtime.autotuning import CACHE_FLAG

NOT_COMPILED = ("api", "text", "commands")
"""Folders of jserve that no program is traced from. All others count, so that none is forgotten."""
FLAG_VARIABLES = ("XLA_", "JAX_", "TF_", "TRITON_", "CUBLAS", "CUDNN", "NVIDIA_TF32")
"""Beginnings of the environment variables that may change what is compiled."""


def configuration_key(programs: Any, mesh: jax.sharding.Mesh) -> str:
    """What the programs that `programs` makes (`Programs` or `EncoderPrograms`) depend on, the environment included."""
    return f"{environment_key(mesh)}\n{describe(programs)}"


def describe(value: Any) -> str:
    """A value with all fields of its dataclasses, the same in every process. Raises TypeError for what has no such
    description.
    """
    if is_dataclass(value) and not isinstance(value, type):
        parts = (f"{field.name}={describe(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__qualname__}({', '.join(parts)})"
    match value:
        case None | bool() | int() | float() | str():
            return repr(value)
        case np.dtype():
            return value.name
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case jax.sharding.Mesh():
            return describe((dict(value.shape), [device.id for device in value.devices.flat]))
        case tuple() | list():
            return f"({', '.join(map(describe, value))})"
        case Set():
            return f"{{{', '.join(sorted(map(describe, value)))}}}"
        case Mapping():
            return f"{{{', '.join(sorted(f'{describe(key)}: {describe(entry)}' for key, entry in value.items()))}}}"
    raise TypeError(f"a {type(value).__name__} has no description that stored programs could depend on: {value!r}")


def environment_key(mesh: jax.sharding.Mesh) -> str:
    """Versions, devices, driver, flags and source: what the programs of this process depend on."""
    device = mesh.devices.flat[0]
    parts: list[Any] = [
        jax.__version__,
        jaxlib.version.__version__,
        flax.__version__,
        _gpu_libraries() if device.platform != "cpu" else "",
        device.client.platform_version,
        device.device_kind,
        dict(mesh.shape),
        [d.id for d in mesh.devices.flat],
        _flags(),
        sorted((name, str(value)) for name, value in jax.config.values.items()),
        _cpu_model() if device.platform == "cpu" else "",
        os.cpu_count() if device.platform == "cpu" else "",
        source_digest(),
    ]
    return "\n".join(map(str, parts))


def _flags() -> dict[str, str]:
    """All that may change what is compiled, but not where the compiler keeps what it found fastest."""
    flags = {name: value for name, value in sorted(os.environ.items()) if name.startswith(FLAG_VARIABLES)}
    if CACHE_FLAG in flags.get("XLA_FLAGS", ""):
        flags["XLA_FLAGS"] = " ".join(word for word in flags["XLA_FLAGS"].split() if not word.startswith(CACHE_FLAG))
    return {name: value for name, value in flags.items() if value or name != "XLA_FLAGS"}


def source_digest() -> str:
    """Digest of the source and the tables that programs are traced from; the same wherever it is installed."""
    import pallas_kernels

    package, kernels = Path(__file__).parent.parent, Path(pallas_kernels.__path__[0])
    names = {file: file.relative_to(package) for file in package.rglob("*.py")}
    named = {f"jserve/{name}": file for file, name in names.items() if name.parts[0] not in NOT_COMPILED}
    named |= {f"pallas_kernels/{file.relative_to(kernels)}": file for file in kernels.rglob("*.py")}
    named |= {f"pallas_kernels/{file.relative_to(kernels)}": file for file in kernels.rglob("*.toml")}
    digest = hashlib.sha256()
    for name, file in sorted(named.items()):
        digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()


def _gpu_libraries() -> str:
    """The driver, and the installed libraries that programs for a GPU are made with and call."""
    try:
        driver = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        driver = ""
    names = ((package.metadata["Name"] or "", package.version) for package in distributions())
    return driver + str(sorted(pair for pair in names if pair[0].startswith(("nvidia-", "jax-cuda"))))


def _cpu_model() -> str:
    """What decides which instructions a CPU program may hold."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
