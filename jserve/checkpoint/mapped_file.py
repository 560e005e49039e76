"""A read-only mapped file whose every access is checked against its length.

Headers are written by others: a count or an offset from one is never trusted with an allocation or a slice.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from types import TracebackType

from jserve.checkpoint.json_file import check_regular, refuse_pointer
from jserve.errors import CheckpointError


class MappedFile:
    """Bytes of a file. Raises CheckpointError where the file cannot be read or is too short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_regular(path)
            with path.open("rb") as stream:
                refuse_pointer(path, stream.read(64))
                stream.seek(0, 2)
                self.size = stream.tell()
                # An empty file cannot be mapped.
                self._map: mmap.mmap | bytes = (
                    mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
                )
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def buffer(self) -> mmap.mmap | bytes:
        """The whole file, for numpy views and `struct`."""
        return self._map

    def slice(self, start: int, stop: int) -> bytes:
        """A copy of the bytes from `start` to `stop`, shorter where the file ends before."""
        return self._map[start:stop]

    def require(self, start: int, length: int, what: str) -> None:
        """Raise CheckpointError unless `length` bytes at `start` lie inside the file."""
        if start < 0 or length < 0 or start + length > self.size:
            raise CheckpointError(
                f"{self.path}: {what} needs {length:,} bytes at offset {start:,} but the file has "
                f"{self.size:,}; it is truncated or damaged, fetch it again"
            )

    def will_need(self, start: int, length: int) -> None:
        """Have these bytes read ahead in large requests, instead of as pages are first touched."""
        if isinstance(self._map, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
            begin = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, begin, min(start + length, self.size) - begin)

    def close(self) -> None:
        """Unmap the file, or leave it to the last array that still looks into it."""
        if isinstance(self._map, mmap.mmap):
            # Numpy views keep the map alive; it goes with the last of them.
            with contextlib.suppress(BufferError):
                self._map.close()
        self._map = b""
