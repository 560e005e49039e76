"""`jserve convert`: a model's files into parameters in serving layout, on this machine's CPU."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from jserve.commands.hub_model import MODEL_HELP, add_hub_options, local_path
from jserve.commands.parser import Parser
from jserve.config import DTYPES, QUANTIZATIONS, EngineConfig
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


def parse_convert(argv: Sequence[str]) -> tuple[EngineConfig, Path]:
    """Read the command line of `jserve convert`: the model and the folder to write."""
    parser = Parser(
        prog="jserve convert",
        description="Write a model as it is served, fused and in the layout of devices, with its tokenizer: "
        "`jserve --model DST` starts from it on any number of devices.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help=MODEL_HELP)
    parser.add_argument("target", metavar="DST", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="type of weights (default: the checkpoint's; bfloat16 of a GGUF)",
    )
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="round the weights of linear layers (default: as the checkpoint has them)",
    )
    add_hub_options(parser)
    options = parser.parse_args(list(argv))
    source = local_path(options, options.source)
    config = EngineConfig(model=source, dtype=options.dtype, quantization=options.quantization)
    return config, options.target


def run(argv: Sequence[str]) -> None:
    """Write the model as it is served, for quick starts."""
    convert(*parse_convert(argv))
