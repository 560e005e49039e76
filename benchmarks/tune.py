"""Time other tiles for the kernels on this GPU, and keep the ones that win in a table that the kernels read.

  all that ask      python -m benchmarks.tune
  some cases        python -m benchmarks.tune --match paged_attention/llama3 --minutes 5

Writes `pallas_kernels/tuned/DEVICE.toml`. Whatever a kernel asks `pallas_kernels.tuning` for while a real case is
traced is tuned: from the kernel's own choice, one field after the other is halved, doubled or moved by one, as long as
that makes the cases of the key faster by 2% together. A candidate counts only if it compiles and gives the reference's
values. Where this GPU and this JAX have the Mosaic kernel, it is tuned last and against Triton's with the tiles that
the table has by then: it gets an entry, which is what chooses it, only if each of the key's cases is 5% faster.
Serving never times anything: it reads the table, or takes the kernel's own choice where there is none.
No GPU has run this yet: its search is tested with times that are made up.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import jax
import numpy as np

from benchmarks.kernels import seconds_per_call
from pallas_kernels import Kernel, KernelCase, KernelInputs, abstract_inputs, discover, tuning

GAIN = 0.98  # of the time before, at most; noise is taken to be less
WIN = 0.95  # of Triton's time, at most, in the case where Mosaic does worst: a kernel is not changed for less
CASES_A_KEY = 3  # the smallest, the largest and one between
Values = Mapping[str, int]
Entries = Mapping[tuple[str, str], Values]
TimeOf = Callable[[Values], float | None]


@dataclass(frozen=True, slots=True)
class Question:
    """One key of the table: the kernel's own answer, and the cases that ask.

    implementation: "triton"; or "mosaic", whose entry says that it is the faster of the two.
    """

    name: str
    key: str
    default: Any
    kernel: Kernel
    cases: tuple[KernelCase, ...]
    implementation: str = "triton"


def questions(match: str) -> list[Question]:
    """What the GPU kernels ask the table when their real cases are traced; of Mosaic after all of Triton."""
    by_key: dict[tuple[str, str], Question] = {}
    for implementation in ("triton", "mosaic"):
        for kernel in discover():
            for case in kernel.cases if implementation in kernel.implementations else ():
                if case.quick or match not in f"{kernel.name}/{case.name}":
                    continue
                for name, key, default in _lookups(kernel, case, implementation):
                    first = by_key.setdefault((name, key), Question(name, key, default, kernel, (), implementation))
                    by_key[name, key] = dataclasses.replace(first, cases=(*first.cases, case))
    return [dataclasses.replace(each, cases=_spread(each.cases)) for each in by_key.values()]


def _lookups(kernel: Kernel, case: KernelCase, implementation: str) -> list[tuple[str, str, Any]]:
    """Names, keys and defaults; none where this GPU, this JAX or the kernel itself does not support the case."""
    lookups: dict[tuple[str, str], Any] = {}

    def note(kind: str, name: str, key: str, default: Any) -> Values:
        lookups.setdefault((name, key), default)
        return {}

    inputs = abstract_inputs(case)
    try:
        with patch.object(tuning, "lookup", note):
            jax.eval_shape(functools.partial(kernel.implementations[implementation], **inputs.static), *inputs.args)
    except NotImplementedError:
        return []
    return [(name, key, default) for (name, key), default in lookups.items()]


def _spread(cases: Sequence[KernelCase]) -> tuple[KernelCase, ...]:
    """The smallest, the largest and the one between, by the bytes that they move."""
    ordered = sorted(cases, key=lambda case: case.bytes_moved)
    return tuple(ordered[index] for index in sorted({0, len(ordered) // 2, len(ordered) - 1}))[:CASES_A_KEY]


def neighbours(choice: Any) -> Iterator[tuple[str, int]]:
    """Each field of a choice with other values: powers of two halved and doubled, other numbers one less and more."""
    for field in dataclasses.fields(choice):
        value = getattr(choice, field.name)
        steps = (value - 1, value + 1) if field.name in ("num_stages", "programs_per_core") else (value // 2, value * 2)
        yield from ((field.name, other) for other in steps if other >= 1)


def search(default: Any, time_of: TimeOf) -> tuple[Values, float]:
    """Fields to replace in `default`, and the time with them as a share of that without.

    time_of: relative to the default's; None where the values cannot be used.
    """
    best: dict[str, int] = {}
    best_time, tried = 1.0, {tuple[tuple[str, int], ...]()}
    while True:
        before = best_time
        for name, value in list(neighbours(dataclasses.replace(default, **best))):
            candidate = {**best, name: value}
            candidate = {name: each for name, each in candidate.items() if each != getattr(default, name)}
            if (known := tuple(sorted(candidate.items()))) in tried:
                continue
            tried.add(known)
            took = time_of(candidate)
            if took is not None and took < GAIN * best_time:
                best, best_time = candidate, took
        if best_time == before:
            return best, best_time


def contest(default: Any, time_of: TimeOf) -> tuple[Values, float]:
    """All fields of the best values of a kernel that wins against another one, and its time; none where it does not.

    time_of: relative to the other kernel's; None where the values cannot be used.
    """
    own = dataclasses.asdict(default)
    start = time_of(own)
    if start is None:
        return {}, 1.0

    def of_start(values: Values) -> float | None:
        took = time_of({**own, **values})
        return None if took is None else took / start

    values, share = search(default, of_start)
    return ({**own, **values} if share * start <= WIN else {}), share * start


class Timer:
    """Times a question's cases with candidates in place of what the table says, beside its other entries."""

    def __init__(self, question: Question, seconds: float, deadline: float, entries: Entries) -> None:
        self._question = question
        self._seconds = seconds
        self._deadline = deadline
        self._others = {at: values for at, values in entries.items() if at != (question.name, question.key)}
        self._inputs = [case.make(0) for case in question.cases]
        self._wanted = [_values(question.kernel.reference, inputs) for inputs in self._inputs]
        self._before = [self._time("triton", inputs, {}) for inputs in self._inputs]

    def __call__(self, values: Values) -> float | None:
        """The cases' times together, as a share of Triton's without the values; None where these are of no use.

        Together: the geometric mean of the shares; of Mosaic, which has to win everywhere, the largest.
        """
        if time.monotonic() > self._deadline:
            return None
        shares = []
        try:
            for case, inputs, wanted, before in zip(
                self._question.cases, self._inputs, self._wanted, self._before, strict=True
            ):
                with self._given(values):
                    got = _values(self._question.kernel.implementations[self._question.implementation], inputs)
                error = np.max(np.abs(got - wanted) / np.maximum(1, np.abs(wanted)))
                if not error <= case.tolerance:
                    return None
                shares.append(self._time(self._question.implementation, inputs, values) / before)
        except Exception:  # of whatever kind: shapes that the kernel cannot have, shared memory that is not there
            return None
        return max(shares) if self._question.implementation == "mosaic" else math.prod(shares) ** (1 / len(shares))

    def _time(self, implementation: str, inputs: KernelInputs, values: Values) -> float:
        run = functools.partial(self._question.kernel.implementations[implementation], **inputs.static)
        with self._given(values):
            return seconds_per_call(run, inputs.args, self._seconds)

    @contextmanager
    def _given(self, values: Values) -> Iterator[None]:
        entries = {**self._others, (self._question.name, self._question.key): values}
        jax.clear_caches()  # what was traced with other values
        with patch.object(tuning, "lookup", lambda kind, name, key, default: entries.get((name, key), {})):
            yield


def _values(function: Callable[..., Any], inputs: KernelInputs) -> np.ndarray:
    out = jax.jit(functools.partial(function, **inputs.static))(*inputs.args)
    return np.concatenate([np.asarray(leaf.astype("float32"), np.float64).ravel() for leaf in jax.tree.leaves(out)])


def table(kind: str, entries: Entries) -> str:
    """The text of a table's file."""
    lines = ["# Written by `python -m benchmarks.tune`.", f"device = {json.dumps(kind)}"]
    lines.append(f"jax = {json.dumps(jax.__version__)}")
    for (name, key), values in sorted(entries.items()):
        lines += ["", f"[{name}.{json.dumps(key)}]", *(f"{field} = {value}" for field, value in values.items())]
    return "\n".join(lines) + "\n"


def known(kind: str) -> dict[tuple[str, str], Values]:
    """What the table of a device says already."""
    on_disk = tuning.read_table(tuning.table_path(kind), kind)
    return {(name, key): values for name, keys in on_disk.items() for key, values in keys.items()}


def fill(
    kind: str, pending: Sequence[Question], timer_of: Callable[[Question, Entries], TimeOf], deadline: float
) -> None:
    """Answer the questions one after the other, each beside the answers so far, and write the table after each."""
    entries = known(kind)
    for question in pending:
        if time.monotonic() > deadline:
            print(f"no time was left for {question.name} {question.key}", file=sys.stderr)
            continue
        answer = contest if question.implementation == "mosaic" else search
        values, share = answer(question.default, timer_of(question, entries))
        if not values and time.monotonic() > deadline:
            print(f"{question.name} {question.key} was cut off: what the table has stays", file=sys.stderr)
            continue
        kept = dict(values) or ("not chosen" if question.implementation == "mosaic" else "its own choice")
        print(f"{question.name} {question.key}: {kept}, {share:.0%} of the time", flush=True)
        entries.pop((question.name, question.key), None)
        entries |= {(question.name, question.key): values} if values else {}
        tuning.FOLDER.mkdir(exist_ok=True)
        tuning.table_path(kind).write_text(table(kind, entries))  # at once: a visit may be cut off


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases whose kernel/case contains TEXT")
    parser.add_argument("--minutes", type=float, default=8.0, help="no candidate is begun after (default 8)")
    parser.add_argument("--seconds", type=float, default=0.1, help="to spend on each time (default 0.1)")
    args = parser.parse_args(argv)
    if jax.default_backend() != "gpu":
        print("no GPU is here: tiles are timed where they will run", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * args.minutes
    fill(
        jax.devices()[0].device_kind,
        questions(args.match),
        lambda question, entries: Timer(question, args.seconds, deadline, entries),
        deadline,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
