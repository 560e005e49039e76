"""Options about capacity: lengths, sequences, steps, pages and the devices that share a model."""

import argparse

from jserve.commands.sizes import parse_count, parse_size
from jserve.config import KV_CACHE_DTYPES
from jserve.config.speculation import SpeculativeConfig, read_speculative_config
from jserve.errors import ConfigError

_KV_CACHE_ALIASES = {"fp8_e4m3": "fp8", "fp8_per_token_head": "fp8", "int8_per_token_head": "int8"}


def add_capacity_options(parser: argparse.ArgumentParser) -> None:
    """Add the group."""
    group = parser.add_argument_group("capacity")
    group.add_argument(
        "--max-model-len",
        type=parse_count,
        metavar="N",
        help="longest prompt plus answer, in tokens, such as 8192 or 8K",
    )
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="most sequences computed at once")
    group.add_argument("--max-num-batched-tokens", type=parse_count, metavar="N", help="most tokens of one step")
    group.add_argument("--page-size", "--block-size", type=int, metavar="N", help="tokens of one KV page")
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=0.92,
        metavar="X",
        help="share of the GPU's memory to use",
    )
    group.add_argument(
        "--kv-cache-memory-bytes",
        type=parse_size,
        metavar="SIZE",
        help="memory for KV pages, such as 512M or 2GiB",
    )
    group.add_argument(
        "--kv-cache-dtype",
        type=kv_cache_dtype,
        choices=KV_CACHE_DTYPES,
        default="auto",
        help="type of keys and values: `fp8` (float8_e4m3fn) and `int8` take half the memory, with a scale for each "
        "token and KV head; `auto` is the type of the activations",
    )
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute a prompt's beginning once for all requests that share it",
    )
    group.add_argument(
        "--no-prefix-caching", dest="enable_prefix_caching", action="store_false", help=argparse.SUPPRESS
    )
    group.add_argument(
        "--speculative-config",
        type=_speculative_config,
        metavar="JSON",
        help="draft tokens and check several in a step, which changes no answer: "
        '`{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 5}`',
    )
    group.add_argument(
        "--tensor-parallel-size", "-tp", type=int, default=1, metavar="N", help="GPUs that share each layer"
    )
    group.add_argument(
        "--expert-parallel-size",
        type=int,
        default=1,
        metavar="N",
        help="parts of these GPUs that experts are dealt out over (default: each GPU has a slice of all experts)",
    )


def _speculative_config(text: str) -> SpeculativeConfig:
    try:
        return read_speculative_config(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def kv_cache_dtype(text: str) -> str:
    """A value of `--kv-cache-dtype` in our spelling."""
    return _KV_CACHE_ALIASES.get(text, text)
