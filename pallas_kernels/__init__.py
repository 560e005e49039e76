"""Kernels, one folder per operation, for GPUs and in part for CPUs. Imports nothing of jserve.

A folder is a kernel when it holds `reference.py` (plain jnp: the definition), `cases.py` (real shapes) and
an `__init__.py` that exports `IMPLEMENTATIONS`. One test and one benchmark walk `discover()`, so a kernel
that lacks one of the parts cannot be shipped unnoticed. The folder `native` is no kernel: see there.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax

__all__ = ["IncompleteKernelError", "Kernel", "KernelCase", "KernelInputs", "abstract_inputs", "discover"]

SHARED = ("native",)
"""Folders that kernels share."""


class IncompleteKernelError(ImportError):
    """A kernel folder lacks its reference, its cases or its implementations."""


@dataclass(frozen=True, slots=True)
class KernelInputs:
    """One call of a kernel: `implementation(*args, **static)`; only `args` hold arrays."""

    args: tuple[Any, ...]
    static: Mapping[str, Any]


class KernelCase(Protocol):
    """One real shape of a kernel.

    `quick` says that the CPU interpreter finishes it in a second or two; `tolerance` bounds
    |output - reference| / max(1, |reference|); `flops` and `bytes_moved` are what the operation needs at
    least, whatever an implementation really does. A case may also have `shapes()`: what `make` gives, with
    ShapeDtypeStructs in place of arrays, so that a large one is compiled without being made.
    """

    @property
    def name(self) -> str: ...
    @property
    def quick(self) -> bool: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def flops(self) -> int: ...
    @property
    def bytes_moved(self) -> int: ...
    def make(self, seed: int) -> KernelInputs: ...


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel folder: its definition, what implements it, and the shapes it is tried on."""

    name: str
    reference: Callable[..., Any]
    implementations: Mapping[str, Callable[..., Any]]
    cases: Sequence[KernelCase]


def abstract_inputs(case: KernelCase) -> KernelInputs:
    """The shapes and types of a case's inputs; made and thrown away where the case has no `shapes`."""
    if hasattr(case, "shapes"):
        shapes: KernelInputs = case.shapes()
        return shapes
    made = case.make(0)
    return KernelInputs(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made.args), made.static)


def discover(folder: Path | None = None, package: str = __name__) -> tuple[Kernel, ...]:
    """Every kernel folder under `folder` (default: this package), in alphabetical order.

    Raises IncompleteKernelError naming the folder and the missing part.
    """
    folder = folder or Path(__file__).parent
    names = sorted(
        module.name for module in pkgutil.iter_modules([str(folder)]) if module.ispkg and module.name not in SHARED
    )
    return tuple(_load(f"{package}.{name}" if package else name, name) for name in names)


def _load(module_name: str, name: str) -> Kernel:
    def part(module: str, attribute: str) -> Any:
        try:
            value = getattr(importlib.import_module(module), attribute)
        except (AttributeError, ModuleNotFoundError) as error:
            raise IncompleteKernelError(
                f"kernel folder {name!r} has no {module}.{attribute} ({error}); every kernel needs "
                "reference.py with `reference`, cases.py with `CASES`, and `IMPLEMENTATIONS` in __init__.py"
            ) from error
        if not value:
            raise IncompleteKernelError(f"kernel folder {name!r}: {module}.{attribute} is empty; add at least one")
        return value

    return Kernel(
        name=name,
        reference=part(f"{module_name}.reference", "reference"),
        implementations=part(module_name, "IMPLEMENTATIONS"),
        cases=part(f"{module_name}.cases", "CASES"),
    )
