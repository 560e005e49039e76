"""Programs made ahead, for an image: what `jserve compile` leaves beside them, and how a start takes it up.

Programs are made for exact sizes, and automatic sizes depend on the memory that happens to be free. So the sizes
that were chosen are written down, and a start that is given the folder takes them where its own flags are silent.
"""

import os
from pathlib import Path

import msgspec

from jserve.config import EngineConfig
from jserve.errors import ConfigError

FILE = "sizes.json"


class PrecompiledSizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the flags of these names were resolved to."""

    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    kv_cache_memory_bytes: int | None
    """None of an encoder, which has no cache."""


def write_sizes(folder: Path, sizes: PrecompiledSizes) -> None:
    """Leave the sizes beside the programs, whole or not at all."""
    part = folder / f"{FILE}.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(sizes)))
    os.replace(part, folder / FILE)


def with_precompiled_sizes(asked: EngineConfig, folder: Path) -> EngineConfig:
    """`asked` with the folder's sizes in place of automatic ones. Raises ConfigError where it holds none."""
    try:
        sizes = msgspec.json.decode((folder / FILE).read_bytes(), type=PrecompiledSizes)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"--executables {folder} holds no programs that `jserve compile` made ({error}); "
            f"make them: jserve compile --model PATH --output {folder}"
        ) from None
    given = msgspec.structs.asdict(sizes)
    return msgspec.structs.replace(
        asked, **{name: value for name, value in given.items() if getattr(asked, name) in (None, "auto")}
    )
