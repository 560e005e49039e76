"""Flags of vLLM that jserve has under another name, or does without: what to do instead."""

from collections.abc import Iterable
from difflib import get_close_matches

_NOT_NEEDED = "leave it out: "
_ADAPTERS = "adapters are not supported; merge them into the weights"
_SPECULATION = "speculative decoding is not supported"
_REPLICAS = "run one server per replica, behind a load balancer"
_ONE_MACHINE = "a model is served by the GPUs of one machine; use --tensor-parallel-size"
_TEXT_ONLY = _NOT_NEEDED + "messages are text; parts with images, audio or video are refused"
_KERNELS = _NOT_NEEDED + "kernels are chosen by the device"
_EXPERTS = "experts are dealt out with --expert-parallel-size N, which divides --tensor-parallel-size"
_PER_REQUEST = "set it in each request: "
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
    "--calculate-kv-scales": _NOT_NEEDED + "each token has scales of its own; see --kv-cache-dtype",
    "--tokenizer": "the tokenizer is the model's own",
    "--tokenizer-mode": "the tokenizer is the model's own",
    "--pipeline-parallel-size": "layers are not spread over GPUs; use --tensor-parallel-size",
    "--data-parallel-size": _REPLICAS,
    "--distributed-executor-backend": _NOT_NEEDED + "one process drives all GPUs of the machine",
    "--guided-decoding-backend": _NOT_NEEDED + "grammars are compiled with llguidance",
    "--structured-outputs-config": _NOT_NEEDED + "grammars are compiled with llguidance",
    "--disable-log-requests": _NOT_NEEDED + "requests are one line each; see --log-level",
    "--no-enable-log-requests": _NOT_NEEDED + "requests are one line each; see --log-level",
    "--disable-log-stats": _NOT_NEEDED + "figures are in /metrics only",
    "--max-logprobs": "the most that a request may ask for is 20",
    "--uvicorn-log-level": "use --log-level",
    "--enable-lora": _ADAPTERS,
    "--lora-modules": _ADAPTERS,
    "--speculative-config": _SPECULATION,
    "--speculative-model": _SPECULATION,
    "--task": _NOT_NEEDED + "one server generates, embeds and scores",
    "--runner": _NOT_NEEDED + "one server generates, embeds and scores",
    "--device": "the device is a GPU where jax finds one, else the CPU; set JAX_PLATFORMS to choose",
    "--scheduling-policy": _NOT_NEEDED + "requests with a lower `priority` come first; API keys get equal shares",
    "--num-gpu-blocks-override": "use --kv-cache-memory-bytes",
    "--disable-sliding-window": "sliding windows are part of the model",
    "--middleware": "put a proxy in front",
    "--grpc": "requests come over HTTP",
    "--enable-ssl-refresh": "send SIGHUP, and certificate and key are read again",
    "--ssl-ca-certs": "put a proxy in front that asks clients for certificates",
    "--api-server-count": _NOT_NEEDED + "one process answers HTTP, another one computes",
    "--async-scheduling": _NOT_NEEDED + "the next step is always planned while the device works",
    "--cudagraph-capture-sizes": _NOT_NEEDED + "nothing is captured",
    "--max-cudagraph-capture-size": _NOT_NEEDED + "nothing is captured",
    "--optimization-level": _NOT_NEEDED + "there is one way to compile",
    "--performance-mode": "see --max-num-seqs and --max-num-batched-tokens",
    "--max-num-scheduled-tokens": "use --max-num-batched-tokens",
    "--max-num-active-seqs": "use --max-num-seqs",
    "--max-num-queued-reqs": "use --max-queued-requests",
    "--max-num-queued-tokens": "use --max-queued-tokens",
    "--device-memory-utilization": "use --gpu-memory-utilization",
    "--prefix-caching-hash-algo": _NOT_NEEDED + "prefixes are told apart by 256-bit hashes",
    "--logprobs-mode": _NOT_NEEDED + "logprobs are the model's own, before penalties and temperature",
    "--enable-server-load-tracking": _NOT_NEEDED + "/load always counts",
    "--enable-request-id-headers": _NOT_NEEDED + "every answer has X-Request-Id",
    "--enable-tokenizer-info-endpoint": _NOT_NEEDED + "/tokenizer_info always answers",
    "--default-chat-template-kwargs": _PER_REQUEST + "chat_template_kwargs",
    "--return-tokens-as-token-ids": _PER_REQUEST + "return_tokens_as_token_ids",
    "--override-generation-config": "give a folder with a generation_config.json of your own with --generation-config",
    "--chat-template-content-format": _NOT_NEEDED + "what form of content a template wants is found out by trying it",
    "--response-role": _NOT_NEEDED + "answers are the assistant's",
    "--tool-parser-plugin": "use one of the formats of --tool-call-parser",
    "--reasoning-parser-plugin": "use one of the formats of --reasoning-parser",
    "--reasoning-config": "see --reasoning-parser",
    "--tool-strict-level": "calls are held to a tool's schema where it says `strict`, or where a call is required",
    "--logits-processors": "use logit_bias, allowed_token_ids, bad_words or structured_outputs of requests",
    "--pooler-config": "see --pooling",
    "--convert": _NOT_NEEDED + "one server generates, embeds and scores",
    "--max-log-len": _NOT_NEEDED + "what a request says is never logged",
    "--enable-log-outputs": "answers are never logged",
    "--enable-log-deltas": "answers are never logged",
    "--log-config-file": "see --log-level and --log-format",
    "--logging-config": "see --log-level and --log-format",
    "--log-error-stack": _NOT_NEEDED + "tracebacks of failures are logged, and never sent",
    "--disable-uvicorn-access-log": _NOT_NEEDED + "requests are one line each; see --log-level",
    "--disable-access-log-for-endpoints": _NOT_NEEDED + "probes are not logged",
    "--disable-fastapi-docs": "put a proxy in front; /docs and /openapi.json tell nothing of the model",
    "--enable-sleep-mode": "stop the server, and start it again",
    "--enable-prompt-embeds": "send text or token ids",
    "--enable-expert-parallel": _EXPERTS,
    "--expert-placement-strategy": _EXPERTS,
    "--hf-overrides": "change the model's config.json",
    "--hf-token": "set the environment variable HF_TOKEN, which other users of the machine cannot read",
    "--hf-config-path": _NOT_NEEDED + "the configuration is the model's own",
    "--code-revision": _NOT_NEEDED + "no code of a model's repository is ever run",
    "--model-impl": _NOT_NEEDED + "the model's architecture says how it is computed",
    "--language-model-only": _TEXT_ONLY,
    "--disable-cascade-attn": _KERNELS,
    "--disable-custom-all-reduce": _KERNELS,
}
_FAMILIES = {
    "--lora-": _ADAPTERS,
    "--max-lora": _ADAPTERS,
    "--max-cpu-lora": _ADAPTERS,
    "--fully-sharded-loras": _ADAPTERS,
    "--spec-": _SPECULATION,
    "--data-parallel-": _REPLICAS,
    "--dp-": _REPLICAS,
    "-dp": _REPLICAS,
    "--nnodes": _ONE_MACHINE,
    "--node-rank": _ONE_MACHINE,
    "--master-": _ONE_MACHINE,
    "--headless": _ONE_MACHINE,
    "--enable-ep": _ONE_MACHINE,
    "--enable-elastic": _ONE_MACHINE,
    "-pp": "layers are not spread over GPUs; use --tensor-parallel-size",
    "-ep": _EXPERTS,
    "--mm-": _TEXT_ONLY,
    "--limit-mm-": _TEXT_ONLY,
    "--media-": _TEXT_ONLY,
    "--allowed-media-": _TEXT_ONLY,
    "--allowed-local-media-": _TEXT_ONLY,
    "--video-": _TEXT_ONLY,
    "--enable-mm-": _TEXT_ONLY,
    "--trust-request-mm-": _TEXT_ONLY,
    "--skip-mm-": _TEXT_ONLY,
    "--interleave-mm-": _TEXT_ONLY,
    "--attention-": _KERNELS,
    "--moe-backend": _KERNELS,
    "--linear-backend": _KERNELS,
    "--kernel-config": _KERNELS,
    "--mamba-": _NOT_NEEDED + "no model that is supported has state-space layers",
    "--kv-offloading-": "the KV cache stays on the device",
    "--kv-transfer-": "prompts are computed where they are answered",
    "--kv-events-": "events of the KV cache are not published; see /metrics",
    "--offload-": "weights stay on the device; use a smaller model or more GPUs (--tensor-parallel-size)",
    "--cpu-offload-": "weights stay on the device; use a smaller model or more GPUs (--tensor-parallel-size)",
    "--tokenizer-": "the tokenizer is the model's own",
    "--safetensors-": _NOT_NEEDED + "weights are read as fast as the disk gives them",
    "--eplb-": _EXPERTS,
    "--config-format": _NOT_NEEDED + "the format is recognised",
    "--quantization-": "there is --quantization alone; what a checkpoint's own configuration says needs no flag",
    "--watermark": "answers carry no watermark",
}
"""Flags that begin alike."""


def hint_for(unknown: str, known: Iterable[str]) -> str:
    """What to do instead of a flag that jserve does not have, "" where that is not known."""
    flag = unknown.partition("=")[0]
    if flag in _FLAGS:
        return _FLAGS[flag]
    for beginning, hint in _FAMILIES.items():
        if flag.startswith(beginning):
            return hint
    near = get_close_matches(flag, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else ""
