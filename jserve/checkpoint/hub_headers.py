"""The headers of a model on the hub, without its weights: files of the full length that are empty behind the header.

Such a file is sparse and takes the disk that its header takes. What reads headers reads it like the real one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from jserve.checkpoint.gguf.file import GgufFile
from jserve.checkpoint.hub import HubName, choose_files, list_files, root_of, told
from jserve.checkpoint.safetensors_file import MAX_HEADER_BYTES
from jserve.errors import CheckpointError

_FIRST = 1 << 20
"""Bytes that are asked for first; the header of a safetensors file rarely has more."""
_MOST = 256 << 20


@contextmanager
def headers(model: str, *, revision: str | None = None) -> Iterator[Path]:
    """The folder or GGUF file of a name on the hub, for as long as the context lasts. Raises CheckpointError."""
    name = HubName.parse(model)
    with TemporaryDirectory(prefix="jserve-headers-") as folder:
        with told(name, revision):
            files = list_files(name, revision)
            if files is None:
                raise CheckpointError(f"{name.repository} cannot be looked at without the hub; unset HF_HUB_OFFLINE")
            wanted = choose_files(name, list(files))
            for file in wanted:
                path = Path(folder, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_header(path, _Remote(name, file, revision, files[file].size))
        yield root_of(Path(folder), wanted)


class _Remote:
    """One file on the hub, of which the beginning can be read."""

    def __init__(self, name: HubName, file: str, revision: str | None, size: int) -> None:
        from huggingface_hub import hf_hub_url

        self.url = hf_hub_url(name.repository, file, revision=revision)
        self.size = size

    def beginning(self, length: int) -> bytes:
        """The first `length` bytes, or all if there are fewer."""
        from huggingface_hub import get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__

        request_headers = build_hf_headers() | {"Range": f"bytes=0-{length - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", self.url, headers=request_headers, follow_redirects=True) as answer:
            hf_raise_for_status(answer)
            data = bytearray()
            for part in answer.iter_bytes():  # A server may know no ranges: then the rest is never read.
                data += part
                if len(data) >= length:
                    break
        return bytes(data[:length])


def _write_header(path: Path, remote: _Remote) -> None:
    if path.suffix == ".safetensors":
        data = remote.beginning(_FIRST)
        length = 8 + struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
        if len(data) < length <= MAX_HEADER_BYTES:
            data = remote.beginning(length)
        _write_sparse(path, data[:length], remote.size)
    elif path.suffix == ".gguf":
        _write_gguf(path, remote)
    else:
        path.write_bytes(remote.beginning(remote.size))


def _write_gguf(path: Path, remote: _Remote) -> None:
    """GGUF does not say how long its header is: it is whole when its first tensor begins behind what is there."""
    length = _FIRST
    while True:
        length *= 4
        _write_sparse(path, remote.beginning(length), remote.size)
        try:
            file = GgufFile(path)
        except CheckpointError:
            if length >= min(_MOST, remote.size):
                raise
            continue
        file.close()
        if length >= remote.size or min((tensor.offset for tensor in file.tensors.values()), default=0) <= length:
            return


def _write_sparse(path: Path, data: bytes, size: int) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.truncate(max(size, len(data)))
