"""llama.cpp's HTTP server from the wheel `xllamacpp`, by default with one KV cache shared by all slots.

Serves /v1/completions and /v1/chat/completions. Run through llama_cpp.sh, which has the wheel.
"""

import argparse
import os
import signal
from typing import Any


def main() -> None:
    """Start the server and stay until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a .gguf file")
    parser.add_argument("port", type=int)
    parser.add_argument("--parallel", type=int, default=32, help="slots, i.e. sequences at once (default 32)")
    parser.add_argument("--context", type=int, default=1024, help="tokens per slot (default 1024)")
    parser.add_argument("--split-cache", action="store_true", help="a cache per slot instead of one that all share")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    server = start(parser.parse_args())
    print(f"llama.cpp listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


def start(args: argparse.Namespace) -> Any:
    """The running `xllamacpp.Server`, which serves from threads of its own."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.n_parallel = args.parallel
    params.n_ctx = args.context * args.parallel
    params.kv_unified = (
        not args.split_cache
    )  # slots share the cells, as paged engines do, so a long request may take more
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    print(xllamacpp.get_system_info(), flush=True)
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
