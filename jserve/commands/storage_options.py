"""The command line's options for what is kept on the disk: files, batches, responses, and the audit log."""

import argparse
from pathlib import Path

from jserve.commands.sizes import parse_size


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add the group."""
    group = parser.add_argument_group("storage")
    group.add_argument(
        "--storage-dir",
        type=Path,
        metavar="DIR",
        help="folder for files, batches and responses, this server's alone (default: none; there are no files and "
        "batches, and responses are remembered in memory)",
    )
    group.add_argument(
        "--storage-bytes-per-key",
        type=parse_size,
        default=1 << 30,
        metavar="SIZE",
        help="bytes that the files of one key may take",
    )
    group.add_argument(
        "--max-file-bytes", type=parse_size, default=200 << 20, metavar="SIZE", help="largest file that can be sent"
    )
    group.add_argument(
        "--storage-retention-hours",
        type=float,
        default=720.0,
        metavar="H",
        help="hours after which a file is deleted, unless it says otherwise",
    )
    group.add_argument(
        "--batch-priority",
        type=int,
        default=1_000_000,
        metavar="N",
        help="priority of requests in batches, lower is earlier",
    )
    group.add_argument(
        "--audit-log",
        type=Path,
        metavar="FILE",
        help="one JSON line for each request: who, what model, tokens, times, outcome, no text (default: none)",
    )
    group.add_argument(
        "--audit-log-max-bytes",
        type=parse_size,
        default=100_000_000,
        metavar="SIZE",
        help="size above which the audit log is renamed to FILE.1, and that to FILE.2, ...",
    )
    group.add_argument(
        "--audit-log-files", type=int, default=5, metavar="N", help="how many of these are kept beside the newest"
    )
    group.add_argument(
        "--record-workload",
        type=Path,
        metavar="FILE",
        help="one JSON line for each request as `jserve record` writes it: lengths, times and salted hashes, no text; "
        "`jserve report FILE` reads it (default: none)",
    )
