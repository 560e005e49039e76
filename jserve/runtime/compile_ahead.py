"""`jserve compile`: every program of an engine into a folder, from the model's configuration alone.

No weights are read and no KV pages are made: programs are compiled from shapes. They fit the devices and the
versions of this machine, so it is run where the server will run, or on one like it.
"""

import logging
from contextlib import closing
from pathlib import Path

from jserve.checkpoint import open_checkpoint
from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.runtime import platform
from jserve.runtime.compile_behind import Progress
from jserve.runtime.executables import ExecutableStore, PrecompiledSizes, write_sizes
from jserve.runtime.prepare import prepare
from jserve.runtime.start import add_all
from pallas_kernels.owned_files import check_folder

logger = logging.getLogger(__name__)


def compile_ahead(engine_config: EngineConfig, folder: Path, progress: Progress) -> int:
    """Fill `folder`; what it holds already is kept. Returns how many programs it holds for this engine.

    Raises StartupError where the model cannot be served with these flags, or the folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        check_folder(folder)
    except PermissionError as error:
        raise ConfigError(f"--output {folder} cannot hold programs: {error}") from None
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be made: {error.strerror or error}") from None
    mesh = platform.make_mesh(engine_config.tensor_parallel_size, engine_config.expert_parallel_size)
    with closing(
        open_checkpoint(engine_config.model, needs_weights=False, architecture=engine_config.architecture)
    ) as checkpoint:
        prepared = prepare(engine_config, checkpoint, mesh, (folder,))
    table = prepared.make_runner(ExecutableStore(folder, prepared.key, key_mode=0o644), mesh).table
    programs = table.missing()
    add_all(table, programs, progress)
    shape = prepared.shape
    sizes = PrecompiledSizes(
        dtype=prepared.build.dtype.name,
        max_model_len=shape.max_model_len,
        max_num_seqs=shape.max_num_seqs,
        max_num_batched_tokens=shape.max_num_batched_tokens,
        page_size=shape.page_size,
        kv_cache_memory_bytes=prepared.plan.kv_pages or None,
    )
    try:
        write_sizes(folder, sizes)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written: {error.strerror or error}") from None
    logger.info("%d programs are in %s", len(programs), folder)
    return len(programs)
