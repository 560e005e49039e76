"""Shared worlds: the environment, tiny models, the real model, and engines that tests share."""

import importlib.util
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import hypothesis
import pytest

from tests.patience import PATIENCE_S

# No property is decided by how fast its examples are made and run.
hypothesis.settings.register_profile(
    "jserve",
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.large_base_example,
        hypothesis.HealthCheck.filter_too_much,
    ],
)
hypothesis.settings.load_profile("jserve")

# Nor by how fast a server answers: httpx would give up after five seconds. Kernels are also tested where it is missing.
if importlib.util.find_spec("httpx"):
    import httpx

    for part in ("connect", "read", "write", "pool"):
        setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, PATIENCE_S)

REAL_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
REAL_ENCODER = "all-MiniLM-L6-v2"
LONGEST = {"test_every_kernel.py", "test_parity.py", "test_step.py"}
"""Files that take minutes: first, so that no process works through one of them while the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The real model's file. `make model` fetches it."""
    named = os.environ.get("JSERVE_TEST_MODEL")
    path = Path(named) if named else Path(__file__).parent.parent / "models" / REAL_MODEL
    if named and not path.exists():
        pytest.fail(f"JSERVE_TEST_MODEL is {named}, which is not there")
    if not path.exists():
        pytest.skip(f"{path} is not there; `make model` fetches it")
    return path


@pytest.fixture(scope="session")
def real_encoder(real_gguf: Path) -> Path:
    """The folder of a real model for embeddings, beside the other. `make model` fetches it too."""
    path = real_gguf.parent / REAL_ENCODER
    if not path.exists():
        pytest.skip(f"{path} is not there; `make model` fetches it")
    return path


@pytest.fixture(scope="session")
def executables(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of stored executables for the whole run, all its processes, so that equal engines compile once."""
    named = os.environ.get("JSERVE_TEST_EXECUTABLES")
    if named is None and "PYTEST_XDIST_WORKER" in os.environ:
        return str(tmp_path_factory.getbasetemp().parent / "executables")
    return named or str(tmp_path_factory.mktemp("executables"))
