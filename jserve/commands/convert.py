"""`jserve convert`: a model's files into parameters in serving layout, on this machine's CPU."""

import logging
import os
import time
from pathlib import Path

from jserve.config import EngineConfig
from jserve.log import set_up_logging

logger = logging.getLogger(__name__)


def convert(config: EngineConfig, folder: Path) -> None:
    """Write `folder`. Raises StartupError where that is not possible."""
    set_up_logging("info", "text")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells each of its steps
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from tqdm import tqdm

    from jserve.runtime.load_model import convert as write

    clock = time.perf_counter()
    with tqdm(desc="Reading weights", unit="") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        size = write(config, folder, report)
    seconds = time.perf_counter() - clock
    logger.info(
        "%s holds %.2f GiB of parameters, after %.1f s: jserve --model %s", folder, size / 2**30, seconds, folder
    )
