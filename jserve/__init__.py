"""jserve: a serving engine for language models, in Python on JAX.

`LLM` and `SamplingParams` are the offline API; the server is the command `jserve`. Importing this package
imports nothing heavy: the API process must never load jax.
"""

from typing import TYPE_CHECKING, Any

from jserve.version import __version__

if TYPE_CHECKING:
    from jserve.llm import LLM
    from jserve.protocol import SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from jserve.llm import LLM

        return LLM
    if name == "SamplingParams":
        from jserve.protocol import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'jserve' has no attribute {name!r}")
