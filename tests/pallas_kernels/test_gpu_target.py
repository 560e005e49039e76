"""Where the CUDA plugin is installed, programs for GPUs can be compiled: the tests that do so are not skipped."""

from importlib.metadata import PackageNotFoundError, version

import jax
import pytest

from pallas_kernels.gpu_target import why_unavailable


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@pytest.mark.skipif(
    not any(_installed(f"jax-cuda{cuda}-plugin") for cuda in (12, 13)),
    reason="no CUDA plugin; `make test` installs one",
)
def test_an_installed_plugin_compiles() -> None:
    assert why_unavailable() is None
    assert jax.__version__ in {_installed(f"jax-cuda{cuda}-plugin") for cuda in (12, 13)}
