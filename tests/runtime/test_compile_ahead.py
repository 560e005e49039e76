"""Programs made ahead: from a configuration without weights, taken up by a start that then compiles nothing."""

from pathlib import Path

import pytest

from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.runtime.compile_ahead import compile_ahead
from jserve.runtime.executables import SIZES_FILE, with_precompiled_sizes
from jserve.runtime.program_folder import ProgramFolder
from jserve.runtime.start import start_runner
from tests.worlds import make_model

SIZES = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 16, "page_size": 4}


def quiet(*_: object) -> None: ...


def test_precompiled_programs_start_an_engine_that_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, bare, folder = (
        make_model(tmp_path / "model", "LlamaForCausalLM"),
        tmp_path / "bare",
        tmp_path / "precompiled",
    )
    bare.mkdir()
    (bare / "config.json").write_bytes((model / "config.json").read_bytes())
    requested = EngineConfig(model=str(bare), kv_cache_memory_bytes=1 << 20, **SIZES)  # type: ignore[arg-type]
    count = compile_ahead(requested, folder, quiet)
    assert len(list(folder.glob("*.jserve"))) == count

    # The memory that is free now would give other sizes; those of the folder are taken.
    monkeypatch.setattr("jserve.runtime.memory.CPU_KV_BYTES", 3 << 20)
    before = sorted((file.name, file.read_bytes()) for file in folder.iterdir())
    plain = EngineConfig(model=str(model), executables=str(folder), compile_cache_dir=str(tmp_path / "cache"))
    started = start_runner(plain, quiet)
    store = started.runner.table._store
    for program in started.runner.table.missing():
        started.runner.table.add(program)
    assert (store.num_compiled, store.num_loaded) == (0, count)
    assert started.shape.max_num_seqs == SIZES["max_num_seqs"]
    assert sorted((file.name, file.read_bytes()) for file in folder.iterdir()) == before
    assert not (tmp_path / "cache").exists()

    # Another size is another program: it is compiled, kept in the cache, and said.
    other = start_runner(
        EngineConfig(
            model=str(model), executables=str(folder), compile_cache_dir=str(tmp_path / "cache"), max_num_seqs=2
        ),
        quiet,
    )
    assert other.runner.table._store.num_compiled > 0
    assert "were not in" in caplog.text
    assert list((tmp_path / "cache").glob("*.jserve"))


def test_flags_win_over_precompiled_sizes(tmp_path: Path) -> None:
    sizes = {"dtype": "float32", "max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 16, "page_size": 4}
    (tmp_path / SIZES_FILE).write_text(str({**sizes, "kv_cache_memory_bytes": 4096}).replace("'", '"'))
    actual = with_precompiled_sizes(EngineConfig(model="m", max_model_len=32), tmp_path)
    assert (actual.max_model_len, actual.max_num_seqs, actual.dtype) == (32, 4, "float32")


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_folder_without_programs_is_refused_with_the_command_that_makes_them(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / SIZES_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"jserve compile --model PATH --output"):
        with_precompiled_sizes(EngineConfig(model="m"), tmp_path)


def test_programs_made_ahead_can_be_loaded_by_another_user(tmp_path: Path) -> None:
    """An image is often made by root, and run by someone else."""
    ProgramFolder(tmp_path, key_mode=0o644).write("a.jserve", b"program")
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {"a.jserve": 0o644, "key": 0o644}


def test_output_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by other users"):
        compile_ahead(EngineConfig(model="m"), tmp_path, quiet)


def test_output_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .* cannot be made"):
        compile_ahead(EngineConfig(model="m"), tmp_path / "file" / "folder", quiet)
