"""A worker for tests of workers that are lost: `python -m tests.api.supervisor.odd_worker FD`."""

import os
import socket
import sys
from pathlib import Path

from jserve.text.templates.job_frames import serve_jobs


def _answer(job: str) -> bytes:
    path = Path(job.rpartition(" ")[2])
    if job == "die" or (job.startswith("die once") and not path.exists()):
        if job != "die":
            path.touch()
        os._exit(1)
    return str(os.getpid()).encode()


if __name__ == "__main__":
    serve_jobs(socket.socket(fileno=int(sys.argv[1])), lambda setup: _answer)
