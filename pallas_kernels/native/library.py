"""Native kernels of this machine: object code, compiled by Numba once, kept in a folder, loaded by LLVM alone.

Numba is loaded only where nothing is stored yet. A stored file has a digest of its name and its bytes before
them, and in its name a digest of all that the code depends on. Files that another user could have written are not used.
"""

import ctypes
import functools
import hashlib
import importlib
import logging
import os
import tempfile
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.ffi

from ..owned_files import check_folder, read_owned

__all__ = ["SUFFIX", "load_kernel", "require", "target_name"]

logger = logging.getLogger(__name__)

SUFFIX = ".native"
"""The ending of stored files' names."""
_DIGEST_BYTES = 32
_NAME_BYTES = 256  # of the handler's symbol, before the object code
_INTERFACES = {(0, 3), (0, 4), (0, 5)}
"""Versions of XLA's foreign function interface whose layout `calls` knows."""
_UNUSED = (
    "numba_gil_ensure", "numba_gil_release", "numba_unpickle", "numba_do_raise", "numba_runtime_build_excinfo_struct",
    "NRT_Free",
)  # fmt: skip
"""What a function of Numba calls when it raises, which these never do."""

_loaded: dict[str, tuple[bytes, object]] = {}
"""By target: what is stored of a kernel, and what XLA keeps addresses into."""
_lock = threading.Lock()


def target_name(kernel: str, kind: str) -> str:
    """What XLA calls a kernel of a kind."""
    return f"jserve_{kernel}_{kind}"


def require(kernel: str, kind: str) -> None:
    """Raise NotImplementedError elsewhere than on a CPU, and RuntimeError where the kernel cannot be loaded.

    Two errors, because a test that skips what is not supported must not skip code that is broken.
    """
    if jax.default_backend() != "cpu":
        raise NotImplementedError("native kernels are for CPUs")
    if not load_kernel(kernel, kind):
        raise RuntimeError("native kernels need Numba: pip install 'jserve[cpu]'; the log says more")


def load_kernel(kernel: str, kind: str, *folders: Path | None) -> bool:
    """Have a kernel known to XLA; whether it is. `kind` is one that its `native_code` has.

    It is read from the first of the folders that has it, or else compiled, which takes some seconds, and stored in the
    last one that is not None. False, with the reason in the log, where Numba is not installed or cannot do it.
    """
    target = target_name(kernel, kind)
    with _lock:
        try:
            paths = [folder / _file_name(kernel, kind) for folder in folders if folder is not None]
            if target in _loaded:
                if paths and not any(path.exists() for path in paths):
                    _store(paths[-1], _loaded[target][0])
                return True
            body = _read_or_compile(kernel, kind, paths)
            _loaded[target] = body, _register(target, body)
        except ImportError as error:
            logger.info("%s runs on XLA: %s; `pip install 'jserve[cpu]'` makes it faster", kernel, error)
            return False
        except NotImplementedError as error:
            logger.warning("%s runs on XLA, which is slower: %s", kernel, error)
            return False
        except Exception:
            logger.warning("%s runs on XLA, which is slower: its native code failed", kernel, exc_info=True)
            return False
        return True


def _read_or_compile(kernel: str, kind: str, paths: list[Path]) -> bytes:
    """The handler's name in _NAME_BYTES, then the object code."""
    for path in paths:
        try:
            check_folder(path.parent)
            data = read_owned(path)
        except PermissionError as error:
            logger.warning("stored native code is not used: %s", error)
            continue
        except OSError:
            continue
        if _digest(path, data[_DIGEST_BYTES:]) == data[:_DIGEST_BYTES]:
            return data[_DIGEST_BYTES:]
        logger.warning("%s is damaged; compiling again", path)
    begin = time.perf_counter()
    body = _compile(kernel, kind)
    logger.info("compiled %s for this CPU in %.1f s", kernel, time.perf_counter() - begin)
    if paths:
        _store(paths[-1], body)
    return body


def _file_name(kernel: str, kind: str) -> str:
    return f"{kernel}-{kind}-{_key(kernel)}{SUFFIX}"


def _store(path: Path, body: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        check_folder(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="part-") as folder:
            part = Path(folder, path.name)
            part.write_bytes(_digest(path, body) + body)
            part.chmod(0o644)  # whatever the umask, nobody else writes it
            os.replace(part, path)
    except OSError as error:
        logger.warning("native code could not be stored in %s (%s); the next start compiles again", path, error)


def _digest(path: Path, body: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\n" + body).digest()


@functools.cache
def _key(kernel: str) -> str:
    """Digest of what the code depends on: its source, this CPU, LLVM, and XLA's interface."""
    import llvmlite
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for file in (*sorted(folder.glob("*.py")), *sorted((folder.parent / kernel).glob("*.py"))):
        digest.update(file.read_bytes())
    try:
        numba = version("numba")
    except PackageNotFoundError:
        numba = ""
    features = llvm.get_host_cpu_features().flatten()
    for part in (llvmlite.__version__, numba, llvm.get_host_cpu_name(), features, _interface()):
        digest.update(repr(part).encode())
    return digest.hexdigest()[:24]


@functools.cache
def _interface() -> tuple[int, int]:
    """The version of XLA's foreign function interface in the installed jaxlib."""
    numbers = {}
    for line in (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text().splitlines():
        words = line.split()
        if words[:1] == ["#define"] and len(words) == 3 and words[1].startswith("XLA_FFI_API_"):
            numbers[words[1].removeprefix("XLA_FFI_API_")] = words[2]
    return int(numbers["MAJOR"]), int(numbers["MINOR"])


def _compile(kernel: str, kind: str) -> bytes:
    import llvmlite.binding as llvm

    from .compile import compile_kernel

    interface = _interface()
    if interface not in _INTERFACES:
        raise NotImplementedError(f"version {interface} of XLA's foreign function interface is not known")
    code = importlib.import_module(f"pallas_kernels.{kernel}.native_code")
    (first, *others), name = compile_kernel(code, kind, interface)
    module = llvm.parse_assembly(first)
    for text in others:
        module.link_in(llvm.parse_assembly(text))
    return name.encode().ljust(_NAME_BYTES, b"\0") + _machine().emit_object(module)


def _machine() -> "llvm.TargetMachine":  # type: ignore[name-defined]  # noqa: F821
    """Code for this CPU; LLVM's own parts are initialized on the first call."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )


def _register(target: str, body: bytes) -> object:
    """Link object code into this process and tell XLA; what must be kept for it."""
    import llvmlite.binding as llvm

    name, code = body[:_NAME_BYTES].rstrip(b"\0").decode(), body[_NAME_BYTES:]
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for symbol in _UNUSED:
        if llvm.address_of_symbol(symbol) is None:
            llvm.add_symbol(symbol, abort)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(name)
    if not address:
        raise OSError(f"{name} is not in the object code")
    handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(address)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")
    return engine, handler
