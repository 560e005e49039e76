"""Runs a Mosaic attention kernel, or a copy of it with a bug, in Pallas' interpreter of GPUs; here or in a process.

The interpreter has a thread for each warpgroup, so a bug in waiting can stop it for ever. A process of its own is ended
when nothing was done in it for some seconds, and says where its threads stood.
"""

import dataclasses
import faulthandler
import functools
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from pallas_kernels import KernelInputs
from pallas_kernels.paged_attention.cases import Case, Row
from pallas_kernels.paged_attention.reference import reference
from tests.pallas_kernels.planted_bugs import module

INTERPRETED = {
    case.name: case
    for case in (
        Case("long_context_reuses_places", 4, 1, 128, 64, (Row(64, 400),)),
        Case("window_sinks_g8", 8, 1, 64, 64, (Row(1, 130), Row(66, 70)), sliding_window=40, sinks=True),
        Case("soft_cap_f16_g3", 3, 1, 128, 64, (Row(65, 100),), "float16", soft_cap=5.0, padding_tokens=1),
        Case("one_head_b128", 1, 1, 64, 128, (Row(67, 200),), padding_rows=1),
        Case("decode_reuses_places", 4, 1, 128, 64, (Row(1, 700), Row(1, 130), Row(1, 1)), padding_rows=1),
        Case("decode_window_sinks_g8", 16, 2, 64, 64, (Row(1, 300), Row(1, 65)), sliding_window=100, sinks=True),
        Case("decode_soft_cap_f16_g3_b128", 3, 1, 64, 128, (Row(1, 400),), "float16", soft_cap=5.0),
    )
}
STALLED = 30  # seconds without a step of any thread; compiling a thread's program takes two or three
STOPPED = 3  # the exit status then


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: an error as a multiple of what the case tolerates, or what stopped it."""

    error: float = 0.0
    refused: str = ""
    """The interpreter's words for a race, or for a barrier that is used against its rules."""
    stopped_in: str = ""
    """Where the threads stood when none of them went on."""

    @property
    def caught(self) -> str:
        """How a bug was seen: "waits", "refused" or "wrong"; empty where it was not."""
        if self.stopped_in:
            return "waits"
        return "refused" if self.refused else "wrong" if self.error > 1 else ""


def interpret(package: str, inputs: KernelInputs, case: Case) -> Outcome:
    """The kernel of a package against the definition in the real one."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    static = {name: value for name, value in inputs.static.items() if name != "decode"}
    if case.decode:  # two parts a row, which one block takes one after the other
        kernel = module(package, "paged_attention.mosaic_decode").paged_attention_decode
        parts = module(package, "paged_attention.decode_parts")
        static["splitting"] = parts.Splitting(case.B, case.sliding_window, wanted=2, most=2, programs=1)
    else:
        kernel = module(package, "paged_attention.mosaic_prefill").paged_attention_prefill
    expected = jax.jit(functools.partial(reference, **inputs.static))(*inputs.args)
    wanted = np.asarray(expected.astype("float32"))
    try:
        got = np.asarray(jax.jit(functools.partial(kernel, **static, interpret=True))(*inputs.args).astype("float32"))
    except jax.errors.JaxRuntimeError as refusal:
        return Outcome(refused=str(refusal))
    error = np.nan_to_num(np.abs(got - wanted) / np.maximum(1, np.abs(wanted)), nan=np.inf).max() / case.tolerance
    return Outcome(float(error), "a race" if interpret_pallas_call.get_races().races_found else "")


def interpret_apart(package: str, folder: Path, case: Case) -> Outcome:
    """The same in another process, which may stop for ever; the package lies in `folder`."""
    path = os.pathsep.join([str(folder), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.pallas_kernels.mosaic_interpreter", package, case.name]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500)
    if done.returncode == STOPPED:
        return Outcome(stopped_in=done.stderr)
    assert done.returncode == 0, done.stderr[-2000:]
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def stop_when_nothing_goes_on() -> None:
    """Ends this process with its threads' places on stderr when the interpreter has done nothing for `STALLED`."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    memory = gpu_callbacks._get_shared_memory  # which every step of a thread asks for
    idle = -(10**6)  # until the first step

    def step() -> object:
        nonlocal idle
        idle = 0
        return memory()

    def watch() -> None:
        nonlocal idle
        while idle < STALLED:
            time.sleep(1)
            idle += 1  # not the clock, which goes on while a machine or this process is held
        faulthandler.dump_traceback(all_threads=True)
        os._exit(STOPPED)

    gpu_callbacks._get_shared_memory = step
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    package, name = sys.argv[1:]
    case = INTERPRETED[name]
    inputs = case.make(11)
    stop_when_nothing_goes_on()
    print(json.dumps(dataclasses.asdict(interpret(package, inputs, case))))
