"""What tests spare of compiling: engines share equal programs, and may have them hardly optimized."""

import hashlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import jax

from jserve.runtime.executables import ExecutableStore, Program

HARDLY_OPTIMIZED = {"xla_backend_optimization_level": 0}
"""A program of a tiny model takes seconds to optimize and milliseconds to run."""


@dataclass(frozen=True, slots=True)
class _Lowered:
    """Stands for what an `ExecutableStore` compiles."""

    lowered: jax.stages.Lowered
    key: Hashable
    options: dict[str, Any] | None
    compiled: dict[Hashable, jax.stages.Compiled]

    def compile(self) -> jax.stages.Compiled:
        if self.key not in self.compiled:
            self.compiled[self.key] = self.lowered.compile(self.options)
        return self.compiled[self.key]


@dataclass(frozen=True, slots=True)
class SharedPrograms:
    """The programs of this process's engines, by all that they are compiled from."""

    compiled: dict[Hashable, jax.stages.Compiled] = field(default_factory=dict)

    @contextmanager
    def used(self, options: dict[str, Any] | None = None) -> Iterator[None]:
        """Engines that start in here take from these programs; `options` are the compiler's."""
        get = ExecutableStore.get

        def get_shared(
            store: ExecutableStore, program: Program, mesh: jax.sharding.Mesh
        ) -> tuple[jax.stages.Compiled, bool]:
            def lower() -> Any:
                lowered = program.lower()
                text = hashlib.sha256(lowered.as_text().encode()).digest()
                devices = tuple(device.id for device in mesh.devices.flat)
                # Unused arguments do not show in the text.
                key = (text, str(lowered.in_avals), lowered.in_tree, lowered.out_tree, devices, str(options))
                return _Lowered(lowered, key, options, self.compiled)

            return get(store, replace(program, lower=lower), mesh)

        with mock.patch.object(ExecutableStore, "get", get_shared):
            yield


SHARED_PROGRAMS = SharedPrograms()
