"""The programs of a runner: which are there, which could not be compiled, and which are to come."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import jax

from jserve.protocol import ProgramCounts
from jserve.runtime.executables import ExecutableStore, Program
from jserve.runtime.program_keys import Encode, ProgramKey, Step

Take = Callable[[ProgramKey, jax.stages.Compiled], None]


class ModelPrograms(Protocol):
    """Makes the programs of one model."""

    def required(self, *, early: bool = False) -> list[Program]:
        """What must be there before the first step; `early` are the fewest that serve anything."""
        ...

    def optional(self) -> list[Program]:
        """What makes steps cheaper, the most useful first; none that is required."""
        ...


class ProgramTable:
    """Compiled programs by their keys. `add` may bring more at any time, from any thread."""

    def __init__(
        self, programs: ModelPrograms, store: ExecutableStore, mesh: jax.sharding.Mesh, take: Take = lambda *_: None
    ) -> None:
        """`take` is called with each program that is added, by one thread at a time."""
        self._programs = programs
        self._store = store
        self._mesh = mesh
        self._take = take
        self._taking = threading.Lock()
        self._failed: set[ProgramKey] = set()
        self._lacks: Counter[ProgramKey] = Counter()  # changed by the loop, replaced by the thread that compiles
        self._older_lacks: Counter[ProgramKey] = Counter()
        self.notes_lacks = False
        """Whether `note_lack` is wanted: programs are compiled while steps are made."""
        self.compiled: dict[ProgramKey, jax.stages.Compiled] = {}

    def required(self, *, early: bool = False) -> list[Program]:
        """See `ModelPrograms.required`."""
        return self._programs.required(early=early)

    def optional(self) -> list[Program]:
        """See `ModelPrograms.optional`."""
        return self._programs.optional()

    def missing(self) -> list[Program]:
        """All that have not been added, the most useful first."""
        every = {p.key: p for p in (*self.required(early=True), *self.optional(), *self.required())}
        return [program for key, program in every.items() if key not in self.compiled]

    def note_lack(self, keys: Iterable[ProgramKey], cost: int) -> None:
        """A step took a larger program because it lacked those of `keys`; `cost` is the padding that they would have
        spared, in tokens. Called by one thread.
        """
        for key in keys:
            self._lacks[key] += cost

    def next_missing(self) -> Program | None:
        """The program to compile next: whose lack cost most lately, else the most useful. None where all that is
        missing has failed.
        """
        lately, self._lacks = self._lacks, Counter()
        for key, cost in self._older_lacks.items():
            lately[key] += cost // 2  # a load that is over counts for less and less
        self._older_lacks = lately
        left = [program for program in self.missing() if program.key not in self._failed]
        return max(left, key=lambda program: lately[program.key], default=None)

    @contextmanager
    def noting_lacks(self) -> Iterator[None]:
        """Steps note what they lack from here to the end of the block."""
        self.notes_lacks = True
        try:
            yield
        finally:
            self.notes_lacks = False

    def add(self, program: Program) -> bool:
        """Compile or load a program and put it to use. Returns whether it was loaded."""
        try:
            compiled, is_loaded = self._store.get(program, self._mesh)
        except BaseException:
            self._failed.add(program.key)
            raise
        self.put(program.key, compiled)
        self._failed.discard(program.key)
        return is_loaded

    def put(self, key: ProgramKey, compiled: jax.stages.Compiled) -> None:
        """Put a program to use that is ready to run."""
        with self._taking:
            self.compiled[key] = compiled
            self._take(key, compiled)

    def blamed(self, key: ProgramKey) -> AbstractContextManager[None]:
        """See `ExecutableStore.blamed`."""
        return self._store.blamed(key)

    def count(self) -> ProgramCounts:
        """How many there are, and are to come."""
        keys = {program.key for program in (*self.required(), *self.optional())}
        ready, failed = keys & self.compiled.keys(), keys & self._failed
        return ProgramCounts(len(ready), len(failed), len(keys), len(keys & self._store.untuned))

    def take_news(self) -> list[tuple[str, str]]:
        """See `ExecutableStore.take_news`."""
        return self._store.take_news()

    def step_memory(self) -> int:
        """Bytes of the largest step's temporaries as the compiler counts them; 0 where it does not say."""
        sizes = self._store.temporaries.items()
        return max((size for key, size in sizes if isinstance(key, Step | Encode)), default=0)

    def tidy_store(self) -> None:
        """See `ExecutableStore.tidy`."""
        self._store.tidy()
