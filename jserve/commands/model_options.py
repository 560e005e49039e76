"""Options about the model: what is loaded, in which types, and what a request may do with it."""

import argparse

from jserve.commands.hub_model import MODEL_HELP, add_hub_options
from jserve.commands.sizes import parse_size
from jserve.config import DTYPES, FILE_QUANTIZATIONS, LOAD_FORMATS, QUANTIZATIONS, STORED_QUANTIZATIONS

_DTYPE_ALIASES = {"half": "float16", "float": "float32"}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the group."""
    group = parser.add_argument_group("model and loading")
    group.add_argument("--model", metavar="PATH|NAME", help=f"{MODEL_HELP} (no default)")
    add_hub_options(group)
    group.add_argument(
        "--architecture",
        metavar="NAME",
        help="take a Hugging Face folder for one of this architecture, whatever its config.json says, such as "
        "LlamaForCausalLM for a model that has Llama's tensors under another name (default: what it says)",
    )
    group.add_argument("--dtype", type=_dtype, choices=DTYPES, default="auto", help="type of weights and activations")
    group.add_argument(
        "--quantization",
        choices=tuple(dict.fromkeys((*QUANTIZATIONS, *STORED_QUANTIZATIONS, *FILE_QUANTIZATIONS))),
        help="round the weights of linear layers while loading: `int8` and `int4` (groups of up to 128 inputs) keep "
        "activations as they are, `int8-w8a8` and `fp8` round those too; `gguf` keeps the bits of a GGUF file, "
        "`gguf-a8` also rounds activations to int8 as llama.cpp does, `none` reads it in floating point; the others "
        "say what the checkpoint is, which is seen without (default: as the checkpoint has them; of a GGUF file `gguf` "
        "on a CPU, else `none`)",
    )
    group.add_argument(
        "--load-format",
        choices=LOAD_FORMATS,
        default="auto",
        help="`dummy` fills weights at random, to measure speed",
    )
    group.add_argument(
        "--served-model-name",
        dest="served_model_names",
        default=[],
        metavar="NAME",
        nargs="+",
        action="extend",
        help="names that requests may use, the first is the one in answers "
        "(default: the last part of the model's path)",
    )
    group.add_argument(
        "--chat-template",
        metavar="FILE",
        help="template (Jinja or Ollama's Go), or a file with one (default: the model's)",
    )
    group.add_argument(
        "--trust-request-chat-template",
        action="store_true",
        help="let requests bring a chat template of their own, which runs in a sandbox with limits",
    )
    group.add_argument(
        "--grammar-compile-timeout",
        dest="grammar_compile_timeout_s",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="longest compilation of a request's grammar, regular expression or JSON schema",
    )
    group.add_argument(
        "--max-grammar-bytes",
        type=parse_size,
        default=1 << 20,
        metavar="SIZE",
        help="largest grammar, regular expression or JSON schema of a request",
    )
    group.add_argument(
        "--generation-config",
        default="auto",
        metavar="auto|vllm|FOLDER",
        help="source of default sampling: the model's generation_config.json, neutral values, or a folder",
    )
    group.add_argument(
        "--pooling",
        choices=("last", "mean", "cls"),
        help="what an embedding is made of: the hidden state of a text's last token, the mean of all, or that of the "
        "first (default: what a model for embeddings says, else last)",
    )
    group.add_argument(
        "--score-method",
        choices=("generative", "cosine"),
        default="generative",
        help="how /score and /rerank judge: by asking the model whether a document answers the query (the "
        "probability of yes against no), or by the cosine of two embeddings",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed for dummy weights and the like")
    group.add_argument(
        "--compile-cache-dir",
        metavar="DIR",
        help="where compiled programs are kept between starts (default: auto)",
    )
    group.add_argument(
        "--executables", metavar="DIR", help="programs that `jserve compile` made, only read (default: none)"
    )


def _dtype(text: str) -> str:
    return _DTYPE_ALIASES.get(text, text)
