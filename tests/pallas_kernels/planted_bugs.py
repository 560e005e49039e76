"""Plants bugs in kernels: a copy of `pallas_kernels` in which one expression is another."""

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import KernelCase, KernelInputs

PACKAGE = Path(pallas_kernels.__file__).parent


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug: `old` becomes `new` in `file`, and the case called `case` must notice."""

    bug: str
    file: str
    old: str
    new: str
    case: str

    @property
    def id(self) -> str:
        return self.bug.replace(" ", "_").replace("'", "")

    def plant(self, folder: str, into: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """The name of a package like `pallas_kernels`, below the directory `into`, whose `folder` has the bug."""
        name = f"{folder}_with_{''.join(letter if letter.isalnum() else '_' for letter in self.bug)}"
        shutil.copytree(PACKAGE, into / name, ignore=shutil.ignore_patterns("cases.py", "__pycache__"))
        path = into / name / folder / self.file
        source = path.read_text()
        assert source.count(self.old) == 1, f"{self.old!r} stands {source.count(self.old)} times in {self.file}"
        path.write_text(source.replace(self.old, self.new))
        monkeypatch.syspath_prepend(into)
        return name


def module(package: str, name: str) -> ModuleType:
    """`name`, such as "paged_attention.triton_decode", of `pallas_kernels` or of a package with a bug."""
    return importlib.import_module(f"{package}.{name}")


def disagreement(
    kernel: Callable[..., jax.Array], inputs: KernelInputs, expected: np.ndarray, case: KernelCase
) -> float:
    """The largest error of a kernel, as a multiple of what the case tolerates."""
    # Compiled without optimization: it runs once, for milliseconds.
    run = jax.jit(kernel).lower(*inputs.args).compile({"xla_backend_optimization_level": 0})
    error = np.abs(np.asarray(run(*inputs.args).astype("float32")) - expected) / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(error, nan=np.inf).max() / case.tolerance)
