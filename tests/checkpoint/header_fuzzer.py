"""Opens COUNT damaged models in a process whose memory is limited. Run by `test_header_fuzz.py`.

    python header_fuzzer.py FOLDER KIND SEED COUNT

FOLDER holds a sound model of KIND. Prints how many damaged ones were refused and how many opened; leaves with an
exception, and the seed, where opening does anything but succeed or raise CheckpointError.
"""

import json
import random
import resource
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jserve.checkpoint import open_checkpoint
from jserve.errors import CheckpointError
from jserve.models.registry import resolve

HEADROOM = 256 << 20
"""Bytes that opening may take beyond what the process has: headers here have a few kilobytes."""
EACH_S = 1.0
"""CPU time for one model."""
NUMBERS = (-1, 0, 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64, 10**30, 0.5, -1e300)
OTHERS: tuple[Any, ...] = (None, True, "", "../../etc/passwd", "F32", [], {}, [[]], "x" * 5000, list(range(3000)))


def damage_json(value: Any, rng: random.Random) -> Any:
    """The value with one thing in it changed, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, f"{key}x": value[key]}
            case _:
                return {**value, key: damage_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [damage_json(item, rng) if i == place else item for i, item in enumerate(value)]
    return rng.choice(NUMBERS if rng.random() < 0.6 else OTHERS)


def damage_bytes(content: bytes, rng: random.Random, within: int) -> bytes:
    """Some bytes, or one whole number, of the first `within` replaced, or the rest cut off."""
    changed = bytearray(content)
    match rng.randrange(3):
        case 0:
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(within)] = rng.randrange(256)
        case 1:
            at = rng.randrange(within - 8)
            changed[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1)))
        case 2:
            del changed[rng.randrange(within) :]
    return bytes(changed)


def damage_safetensors(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.3:
        path.write_bytes(damage_bytes(content, rng, 8 + length))
        return
    header = json.dumps(damage_json(json.loads(content[8 : 8 + length]), rng)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def damage_file(name: str) -> Callable[[Path, random.Random], None]:
    def damage(folder: Path, rng: random.Random) -> None:
        path = next(folder.rglob(name))
        content = path.read_bytes()
        if rng.random() < 0.2:
            path.write_bytes(damage_bytes(content, rng, len(content)))
        else:
            path.write_text(json.dumps(damage_json(json.loads(content), rng)))

    return damage


def damage_gguf(folder: Path, rng: random.Random) -> None:
    path = next(folder.glob("*.gguf"))
    content = path.read_bytes()
    path.write_bytes(damage_bytes(content, rng, min(len(content), 4000)))


DAMAGES: dict[str, tuple[Callable[[Path, random.Random], None], ...]] = {
    "safetensors": (
        damage_safetensors,
        damage_file("model.safetensors.index.json"),
        damage_file("config.json"),
    ),
    "gguf": (damage_gguf,),
}


def open_whole(folder: Path) -> bool:
    """Whether the model opens, and all that it says can be read; False where it is refused."""
    try:
        checkpoint = open_checkpoint(next(iter(folder.glob("*.gguf")), folder))
        try:
            resolve(checkpoint.config(), source=folder)
            for name in checkpoint.tensors():
                checkpoint.read(name)
        finally:
            checkpoint.close()
    except CheckpointError as error:
        said = str(error)
    else:
        return True
    assert 0 < len(said) < 20_000, "an error that nobody reads"
    return False


def main(sound: Path, kind: str, seed: int, count: int) -> None:
    rng = random.Random(seed)
    work = sound.parent / "damaged"
    open_whole(sound)  # imports what it needs
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, used + HEADROOM))
    counts = {True: 0, False: 0}
    for _ in range(count):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(sound, work)
        rng.choice(DAMAGES[kind])(work, rng)
        before = time.process_time()
        counts[open_whole(work)] += 1
        took = time.process_time() - before
        assert took < EACH_S, f"took {took:.1f} s"
    print(json.dumps({"opened": counts[True], "refused": counts[False]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
