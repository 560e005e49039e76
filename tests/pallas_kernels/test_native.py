"""Native code on a CPU: where it is kept, what happens without it, and that rows do not depend on each other."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dense_matmul import dense_matmul
from pallas_kernels.native import library
from pallas_kernels.paged_attention import paged_attention

KERNEL, KIND = "dense_matmul", "float32"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one stored kernel."""
    folder = tmp_path_factory.mktemp("native")
    assert library.load_kernel(KERNEL, KIND, folder)  # also where it is loaded already
    return folder


def _load_elsewhere(folder: Path, *, has_numba: bool) -> str:
    """What loading says in a fresh process."""
    hidden = "" if has_numba else "sys.modules['numba'] = None; "
    code = (
        f"import sys, logging; {hidden}logging.basicConfig(level=logging.INFO, stream=sys.stdout); "
        "from pathlib import Path; from pallas_kernels.native.library import load_kernel; "
        f"print(load_kernel({KERNEL!r}, {KIND!r}, Path({str(folder)!r})), 'numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=400)
    return done.stdout


def test_fields_of_a_job_follow_its_counters_without_gaps() -> None:
    from pallas_kernels.native.calls import job_fields

    fields = job_fields("first second", floats="third")
    assert (fields.first, fields.second, fields.third, fields.num_bytes) == (32, 40, 48, 56)


def test_stored_code_is_loaded_without_numba(kept: Path) -> None:
    (file,) = kept.iterdir()
    before = file.stat().st_mtime_ns
    assert _load_elsewhere(kept, has_numba=True).split() == ["True", "False"]
    assert file.stat().st_mtime_ns == before


def test_without_numba_and_without_stored_code_it_says_what_to_install(tmp_path: Path) -> None:
    reported = _load_elsewhere(tmp_path, has_numba=False)
    assert "pip install 'jserve[cpu]'" in reported
    assert reported.split()[-2:] == ["False", "True"]  # numba is the None that was put there


def test_a_damaged_file_is_compiled_again_and_said_so(kept: Path, tmp_path: Path, caplog) -> None:
    (file,) = kept.iterdir()
    body = file.read_bytes()
    copy = tmp_path / file.name
    copy.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        again = library._read_or_compile(KERNEL, KIND, [copy])
    assert "is damaged; compiling again" in caplog.text
    assert copy.read_bytes()[library._DIGEST_BYTES :] == again


def test_another_cpu_or_another_version_never_loads_the_same_file(monkeypatch) -> None:
    import llvmlite.binding as llvm

    def key() -> str:
        library._key.cache_clear()
        return library._key(KERNEL)

    keys = [key()]
    for owner, name, value in (
        (llvm, "get_host_cpu_name", lambda: "another"),
        (library, "_interface", lambda: (0, 1)),
        (library, "version", lambda _name: "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.append(key())
    library._key.cache_clear()
    assert len(set(keys)) == len(keys)


def test_an_interface_that_is_not_known_is_refused(monkeypatch, tmp_path: Path, caplog) -> None:
    monkeypatch.setattr(library, "_interface", lambda: (9, 9))
    monkeypatch.setattr(library, "_loaded", {})
    with caplog.at_level(logging.WARNING):
        assert not library.load_kernel(KERNEL, KIND, tmp_path)
    assert "foreign function interface is not known" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_a_row_of_a_product_does_not_depend_on_the_others(dtype: str) -> None:
    rng = np.random.default_rng()
    x, weight = rng.standard_normal((70, 96), np.float32), rng.standard_normal((203, 96), np.float32)
    if dtype == "uint16":
        weight = np.asarray(jnp.asarray(weight, jnp.bfloat16)).view(np.uint16)
    product = jax.jit(lambda x, weight: dense_matmul(x, weight, implementation="native"))
    whole = np.asarray(product(x, weight))
    for rows in (1, 2, 5, 12, 13, 64):
        np.testing.assert_array_equal(np.asarray(product(x[:rows], weight)), whole[:rows])


def _attend(q, pages, table, lengths, contexts):
    starts = jnp.asarray(np.concatenate([[0], np.cumsum(lengths)]), jnp.int32)
    attend = jax.jit(
        lambda *args: paged_attention(*args, scale=0.2, sliding_window=90, soft_cap=20.0, implementation="native")
    )
    return np.asarray(attend(q, *pages, jnp.asarray(table), starts, jnp.asarray(contexts, jnp.int32)))


def test_a_query_does_not_depend_on_its_chunk_or_its_neighbours() -> None:
    rng = np.random.default_rng()
    pages = [jnp.asarray(rng.standard_normal((40, 2, 16, 32), np.float32)) for _ in range(2)]
    table = rng.permutation(40).reshape(4, 10).astype(np.int32)
    q = rng.standard_normal((160, 6, 32), np.float32)
    whole = _attend(q[:150], pages, table[:1], [150], [150])
    np.testing.assert_array_equal(_attend(q[:60], pages, table[:1], [60], [60]), whole[:60])
    np.testing.assert_array_equal(_attend(q[60:150], pages, table[:1], [90], [150]), whole[60:])
    mixed = np.concatenate([q[150:157], q[149:150], q[100:150]])
    actual = _attend(mixed, pages, table[[1, 0, 0]], [7, 1, 50], [100, 150, 150])
    np.testing.assert_array_equal(actual[7:8], whole[149:150])
    np.testing.assert_array_equal(actual[8:], whole[100:150])


def test_calls_from_many_threads_give_the_same_numbers() -> None:
    rng = np.random.default_rng()
    pages = [jnp.asarray(rng.standard_normal((128, 4, 16, 64), np.float32)) for _ in range(2)]
    table, q = rng.permutation(128).reshape(8, 16).astype(np.int32), rng.standard_normal((8, 8, 64), np.float32)
    weight = rng.standard_normal((512, 512), np.float32)

    @jax.jit
    def step(q, table, contexts):
        starts = jnp.arange(9)
        for _ in range(4):
            out = paged_attention(
                q, *pages, table, starts, contexts, scale=0.1, decode=True, implementation="native"
            ).reshape(8, -1)
            q = q + dense_matmul(out, weight, implementation="native").reshape(q.shape)
        return q

    contexts = jnp.asarray(rng.integers(1, 257, 8), jnp.int32)
    expected = np.asarray(step(q, table, contexts))
    wrong: list[int] = []

    def work() -> None:
        for i in range(40):
            if not np.array_equal(np.asarray(step(q, table, contexts)), expected):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.parametrize("page_size", [1, 4, 8])
def test_pages_smaller_than_a_vector(page_size: int) -> None:
    rng = np.random.default_rng()
    count = 64 // page_size
    pages = [jnp.asarray(rng.standard_normal((2 * count, 2, page_size, 32), np.float32)) for _ in range(2)]
    table = jnp.asarray(rng.permutation(2 * count).reshape(2, count), jnp.int32)
    args = (rng.standard_normal((25, 4, 32), np.float32), *pages, table)
    args += (jnp.asarray([0, 20, 21]), jnp.asarray([33, 64]))
    expected, actual = (
        jax.jit(lambda *args, i=i: paged_attention(*args, scale=0.2, sliding_window=19, implementation=i))(*args)
        for i in ("reference", "native")
    )
    np.testing.assert_allclose(actual, expected, atol=2e-6)
