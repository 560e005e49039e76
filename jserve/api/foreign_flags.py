"""Flags of vLLM that jserve has under another name, or does without: what to do instead."""

from collections.abc import Iterable
from difflib import get_close_matches

_NOT_NEEDED = "leave it out: "
_FLAGS = {
    "--enforce-eager": _NOT_NEEDED + "nothing is captured, and compiled programs are kept between starts",
    "--max-seq-len-to-capture": _NOT_NEEDED + "nothing is captured",
    "--cuda-graph-sizes": _NOT_NEEDED + "nothing is captured",
    "--compilation-config": _NOT_NEEDED + "what is compiled follows from --max-num-seqs and --max-num-batched-tokens",
    "--trust-remote-code": _NOT_NEEDED + "no code of a model's repository is ever run",
    "--enable-chunked-prefill": _NOT_NEEDED + "prompts are always computed in chunks",
    "--no-enable-chunked-prefill": "prompts are always computed in chunks, of at most --max-num-batched-tokens",
    "--swap-space": _NOT_NEEDED + "a sequence that loses its pages is computed again",
    "--cpu-offload-gb": "weights stay on the device; use a smaller model or more GPUs (--tensor-parallel-size)",
    "--kv-cache-dtype": "the KV cache has the type of the activations; see --dtype",
    "--quantization": "weights are loaded as the file has them; see docs/models.md for what loads",
    "--tokenizer": "the tokenizer is the model's own",
    "--tokenizer-mode": "the tokenizer is the model's own",
    "--revision": "give the folder of that revision with --model",
    "--download-dir": "models are read from local files; give the folder with --model",
    "--pipeline-parallel-size": "layers are not spread over GPUs; use --tensor-parallel-size",
    "--data-parallel-size": "run one server per replica, behind a load balancer",
    "--distributed-executor-backend": _NOT_NEEDED + "one process drives all GPUs of the machine",
    "--guided-decoding-backend": _NOT_NEEDED + "grammars are compiled with llguidance",
    "--structured-outputs-config": _NOT_NEEDED + "grammars are compiled with llguidance",
    "--disable-log-requests": _NOT_NEEDED + "requests are one line each; see --log-level",
    "--no-enable-log-requests": _NOT_NEEDED + "requests are one line each; see --log-level",
    "--disable-log-stats": _NOT_NEEDED + "figures are in /metrics only",
    "--max-logprobs": "the most that a request may ask for is 20",
    "--uvicorn-log-level": "use --log-level",
    "--enable-lora": "adapters are not supported; merge them into the weights",
    "--lora-modules": "adapters are not supported; merge them into the weights",
    "--speculative-config": "speculative decoding is not supported",
    "--speculative-model": "speculative decoding is not supported",
    "--task": _NOT_NEEDED + "one server generates, embeds and scores",
    "--runner": _NOT_NEEDED + "one server generates, embeds and scores",
    "--device": "the device is a GPU where jax finds one, else the CPU; set JAX_PLATFORMS to choose",
    "--scheduling-policy": _NOT_NEEDED + "requests with a lower `priority` come first, equal ones in order",
    "--num-gpu-blocks-override": "use --kv-cache-memory-bytes",
    "--disable-sliding-window": "sliding windows are part of the model",
    "--middleware": "put a proxy in front",
}


def hint_for(unknown: str, known: Iterable[str]) -> str:
    """What to do instead of a flag that jserve does not have, "" where that is not known."""
    flag = unknown.partition("=")[0]
    if flag in _FLAGS:
        return _FLAGS[flag]
    near = get_close_matches(flag, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else ""
