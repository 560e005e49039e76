"""`jserve quantize`: runs it with a progress bar, and tells what it cost."""

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from jserve.checkpoint import open_checkpoint, weight_files
from jserve.commands.corpus import OWN_TEXT, read_text
from jserve.commands.hub_model import MODEL_HELP, add_hub_options, local_path
from jserve.commands.parser import Parser
from jserve.commands.sizes import parse_count
from jserve.commands.tables import print_table
from jserve.config import QUANTIZE_BITS, QuantizeConfig
from jserve.errors import StartupError
from jserve.log import set_up_logging

logger = logging.getLogger(__name__)


def quantize_into(config: QuantizeConfig, folder: Path, text: Path | None, evaluate: Path | None) -> None:
    """Write `folder` and print a table. Raises StartupError where that is not possible."""
    set_up_logging("info", "text")
    content = read_text(text or OWN_TEXT, "--text")
    if evaluate is not None:
        read_text(evaluate, "--evaluate")  # an hour later would be late
    from jserve.runtime.platform import choose_platform

    choose_platform(0.92)
    from tqdm import tqdm

    from jserve.commands.quantize import quantize

    clock = time.perf_counter()
    with tqdm(desc="Quantizing layers", unit="") as bar:

        def report(done: int, total: int, detail: str) -> None:
            bar.total = total
            bar.set_postfix_str(detail, refresh=False)
            bar.update(done - bar.n)

        done = quantize(config, content, folder, report)
    logger.info(
        "%s: groups of %d, learned on %d tokens in %.0f s: jserve --model %s",
        *(folder, done.group_size, done.tokens, time.perf_counter() - clock, folder),
    )
    errors = [sum(getattr(layer, name) for layer in done.layers) / len(done.layers) for name in ("nearest", "written")]
    rows = [
        ("size of weights", _size(config.model), _size(str(folder))),
        ("output error, nearest to learned", f"{errors[0]:.2e}", f"{errors[1]:.2e}"),
    ]
    if evaluate is not None:
        before, after = (f"{_perplexity(model, evaluate):.4f}" for model in (config.model, str(folder)))
        rows.append((f"perplexity on {evaluate.name}", before, after))
    _print_sizes(rows)


def _size(model: str) -> str:
    with closing(open_checkpoint(model)) as checkpoint:
        return f"{sum(file.stat().st_size for file in weight_files(checkpoint)) / 2**20:,.1f} MiB"


def _perplexity(model: str, text: Path) -> float:
    """In a process of its own, which gives all its memory back."""
    command = [sys.executable, "-m", "jserve", "perplexity", model, str(text), "--json"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        raise StartupError(f"the perplexity of {model} could not be measured; see above")
    return float(msgspec.json.decode(ran.stdout)["perplexity"])


def _print_sizes(rows: list[tuple[str, str, str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "before", "after"):
        table.add_column(title, justify="right" if title else "left")
    for row in rows:
        table.add_row(*row)
    print_table(table)


def parse_quantize(argv: Sequence[str]) -> tuple[QuantizeConfig, Path, Path | None, Path | None]:
    """Read the command line of `jserve quantize`: the model and how, the folder to write, the text to learn on, and
    one to judge by.
    """
    parser = Parser(
        prog="jserve quantize",
        description="Write a model with the weights of its linear layers in 4 or 8 bits, learned on a text, as a "
        "Hugging Face folder in the published layout of the method, which other engines load too.",
        allow_abbrev=False,
    )
    defaults = {field.name: field.default for field in msgspec.structs.fields(QuantizeConfig)}
    parser.add_argument("source", metavar="SRC", help=MODEL_HELP)
    parser.add_argument("target", metavar="DST", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--method",
        choices=tuple(QUANTIZE_BITS),
        required=True,
        help="awq: scales of channels and ranges of groups by gradient descent, 4 bits with zero points; "
        "gptq: rounding whose errors later inputs make up for, 4 or 8 bits about zero",
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help="of a weight (default: 4)")
    parser.add_argument(
        "--group-size", type=int, metavar="N", help="inputs that share a scale (default: the most of 128 that divide)"
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="what to learn on (default: six chapters of Alice in Wonderland)"
    )
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="text for the perplexity before and after")
    for flag, kind, said in (
        ("samples", int, "stretches of the text, at most"),
        ("sequence-length", parse_count, "tokens of each"),
        ("steps", int, "of Adam, awq only; 0 only tries AWQ's own scales"),
        ("learning-rate", float, "of Adam"),
    ):
        default = defaults[flag.replace("-", "_")]
        parser.add_argument(f"--{flag}", type=kind, default=default, metavar="N", help=f"{said} (default: {default})")
    add_hub_options(parser)
    parsed = parser.parse_args(list(argv))
    parsed.source = local_path(parsed, parsed.source)
    options = {name: value for name, value in vars(parsed).items() if name not in ("revision", "download_dir")}
    source, target, text, evaluate = (options.pop(name) for name in ("source", "target", "text", "evaluate"))
    return QuantizeConfig(model=source, **options), target, text, evaluate


def run(argv: Sequence[str]) -> None:
    """Write a model with weights in 4 or 8 bits, learned on a text."""
    quantize_into(*parse_quantize(argv))
