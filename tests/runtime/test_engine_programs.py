"""Programs of an engine from one start to the next: stored ones, the fewest that serve early, and those behind."""

from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.protocol import SamplingParams
from jserve.runtime.compile_behind import CompileBehind, Load
from jserve.runtime.compile_threads import CompileThreads
from jserve.runtime.executables import Program
from jserve.runtime.program_keys import Step
from jserve.runtime.shapes import Bucket
from jserve.runtime.start import start_runner
from tests.runtime.test_executables import count_compiles
from tests.worlds import greedy, make_model, run, start_engine, tokens_of


def test_second_start_of_an_engine_compiles_nothing_and_gives_the_same_tokens(tmp_path: Path, executables: str) -> None:
    model = make_model(tmp_path / "model", "LlamaForCausalLM")
    prompts = {"a": list(range(3, 40)), "b": [7, 8]}
    params = [greedy(12, logprobs=5), SamplingParams(max_tokens=12, seed=1, presence_penalty=1.0, ignore_eos=True)]
    first = start_engine(model, executables)
    with count_compiles() as seen:
        second = start_engine(model, executables)
    assert not seen
    store = second.runner.table._store
    assert store.num_compiled == 0
    assert store.num_loaded == len(second.runner.table.required())
    for param in params:
        expected, actual = run(first, prompts, param), run(second, prompts, param)
        for name in prompts:
            assert tokens_of(actual[name]) == tokens_of(expected[name])
            assert [delta.logprobs for delta in actual[name]] == [delta.logprobs for delta in expected[name]]


def test_engine_that_serves_early_has_the_fewest_programs_and_gets_the_others_behind(
    tmp_path: Path, executables: str
) -> None:
    model = make_model(tmp_path / "model", "LlamaForCausalLM")
    full = start_engine(model, executables)
    sizes = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 16, "page_size": 4}
    config = EngineConfig(model=str(model), compile_cache_dir=executables, kv_cache_memory_bytes=4 << 20, **sizes)
    started = start_runner(config, lambda *_: None, early=True)
    table = started.runner.table
    missing = {program.key for program in table.missing()}
    assert Step(Bucket(4, 4)) in missing
    prompts = {"a": list(range(3, 40)), "b": [7, 8], "c": [9]}
    expected = run(full, prompts, greedy(8))
    actual = run(EngineCore(started), prompts, greedy(8))
    assert {name: tokens_of(actual[name]) for name in prompts} == {name: tokens_of(expected[name]) for name in prompts}
    reported: list[int] = []
    before = table.count()
    assert (before.pending, before.failed) == (len(missing), 0)
    behind = CompileBehind(table, Load(), CompileThreads(), lambda *_: reported.append(table.count().pending))
    behind.start().join()
    assert reported == [*range(len(missing), -1, -1)]
    assert not table.missing()


def test_program_that_cannot_be_compiled_behind_is_counted_as_failed(
    tmp_path: Path, executables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = start_engine(make_model(tmp_path / "model", "LlamaForCausalLM"), executables).runner.table
    missing = table.missing()
    get = table._store.get

    def get_some(program: Program, mesh: Mesh) -> tuple[jax.stages.Compiled, bool]:
        if program.key == missing[1].key:
            raise RuntimeError("the compiler gives up")
        return get(program, mesh)

    monkeypatch.setattr(table, "missing", lambda: [p for p in missing[:2] if p.key not in table.compiled])
    monkeypatch.setattr(table._store, "get", get_some)
    before = table.count()
    CompileBehind(table, Load(), CompileThreads(), lambda *_: None).work()
    after = table.count()
    assert (after.ready, after.failed, after.pending) == (before.ready + 1, 1, before.pending - 2)
