"""Native code of two kernels is compiled in two processes at a cold start, and nowhere else."""

import subprocess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from jserve.config import ModelConfig, read_model_config
from jserve.layers.build import Build
from jserve.runtime import native
from jserve.runtime.native import attention_compiled_beside

FLOAT32 = jnp.dtype("float32")


class _Processes:
    """What is started, and waited for."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.num_ended = 0

    def __call__(self, words: list[str], **_: object) -> "_Processes":
        self.started.append(words)
        return self

    def wait(self) -> None:
        self.num_ended += 1


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> _Processes:
    made = _Processes()
    monkeypatch.setattr(subprocess, "Popen", made)
    monkeypatch.setattr(native.os, "cpu_count", lambda: 2)
    return made


def shape(head_dim: int) -> ModelConfig:
    fields = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    raw = {**fields, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 64}
    return read_model_config(raw, source="config.json")


def build() -> Build:
    mesh: Any = Mesh
    return Build(FLOAT32, FLOAT32, mesh)


def test_attention_is_compiled_by_another_process_that_is_waited_for(tmp_path: Path, processes: _Processes) -> None:
    with attention_compiled_beside(build(), shape(64), (None, tmp_path)):
        assert processes.num_ended == 0
    assert [words[-3:] for words in processes.started] == [["paged_attention", "float32", str(tmp_path)]]
    assert processes.num_ended == 1


def test_it_is_waited_for_when_the_other_kernel_fails(tmp_path: Path, processes: _Processes) -> None:
    with pytest.raises(RuntimeError), attention_compiled_beside(build(), shape(64), (tmp_path,)):
        raise RuntimeError
    assert processes.num_ended == 1


@pytest.mark.parametrize(
    ("head_dim", "is_stored", "has_folder"), [(8, False, True), (64, True, True), (64, False, False)]
)
def test_nothing_is_started_for_what_is_stored_unsupported_or_kept_nowhere(
    tmp_path: Path, processes: _Processes, head_dim: int, is_stored: bool, has_folder: bool
) -> None:
    if is_stored:
        (tmp_path / "paged_attention-float32-0123.native").touch()
    with attention_compiled_beside(build(), shape(head_dim), (tmp_path if has_folder else None,)):
        pass
    assert not processes.started
