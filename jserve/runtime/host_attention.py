"""Which implementation of attention an engine on a CPU gets: native code where there is some, else XLA."""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from jserve.config import ModelConfig
from jserve.layers.build import Build
from pallas_kernels.native.library import load_kernel
from pallas_kernels.paged_attention.native import KERNEL, check_support, page_kind

logger = logging.getLogger(__name__)


def choose_attention(build: Build, config: ModelConfig, page_size: int, folders: Sequence[Path | None]) -> str:
    """A name for `Build.attention`; "native" once its code is loaded, from one of the folders or compiled into the last.

    Elsewhere than on a CPU the kernels choose for themselves: "auto".
    """
    if build.mesh.devices.flat[0].platform != "cpu":
        return "auto"
    pages = {"auto": build.kv_dtype, "int8": jnp.dtype("int8"), "fp8": jnp.dtype("uint8")}[build.kv_cache]
    try:
        latent = config.latent
        if latent is None:
            check_support(config.head_dim, page_size)
        else:
            check_support(latent.rank + latent.rope_dim, page_size, latent.rank)
        return "native" if load_kernel(KERNEL, page_kind(pages), *folders) else "xla"
    except NotImplementedError as error:
        logger.info("attention runs on XLA: %s", error)
        return "xla"
