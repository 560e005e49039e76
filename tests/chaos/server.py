"""The server that is harmed: as `jserve` runs it, but its engine may die as often as it is killed."""

import argparse
import resource
import sys
from pathlib import Path

import uvloop

from jserve.api.http.descriptors import raise_descriptor_limit
from jserve.api.http.listener import listen
from jserve.api.server import serve
from jserve.api.settings import ServerSettings
from jserve.config import EngineConfig
from jserve.log import set_up_logging

FAKE = (sys.executable, "-m", "tests.fake_engine", "--vocab-size", "300", "--step-ms", "2", "--max-num-seqs", "16")
MAX_MODEL_LEN = 2048
MOST_DESCRIPTORS = 300
"""So few that idle connections use them up."""


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--storage-dir", type=Path, required=True)
    options = parser.parse_args()
    set_up_logging("warning", "text")
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_DESCRIPTORS, MOST_DESCRIPTORS))
    raise_descriptor_limit()
    settings = ServerSettings(
        model=options.model,
        served_model_names=("tiny",),
        port=options.port,
        engine_command=FAKE,
        max_engine_restarts=1_000_000,
        max_queued_requests=200,
        receive_timeout_s=5.0,
        storage_dir=options.storage_dir,
        audit_log=options.storage_dir.with_name("audit"),
        audit_log_max_bytes=1 << 20,
    )
    config = EngineConfig(model=options.model, max_model_len=MAX_MODEL_LEN)
    uvloop.run(serve(config, settings, listen("127.0.0.1", options.port)))


if __name__ == "__main__":
    main()
