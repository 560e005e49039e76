"""One file in a multipart form (RFC 7578), written to the disk as it comes, with the form's other fields."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from jserve.api.errors import MediaTypeError
from jserve.api.store.files import check_space
from jserve.errors import RequestError

_MAX_FIELD_BYTES = 4096
_MAX_FIELDS = 16


@dataclass(slots=True)
class Form:
    """A form: its file's name, None where none came, and its other fields."""

    filename: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


async def received_form(parts: AsyncIterator[bytes], content_type: str, path: Path) -> Form:
    """Write the form's field `file` to `path`. Raises MediaTypeError, RequestError, StorageError."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise MediaTypeError("Unsupported Media Type: a file is sent as multipart/form-data")
    try:
        with path.open("xb") as file:
            reader = _FormReader(file)
            parser = MultipartParser(options[b"boundary"], reader.callbacks())  # type: ignore[arg-type]
            async for part in parts:
                parser.write(part)
                await asyncio.sleep(0)
            parser.finalize()
    except FormParserError as error:
        raise RequestError(f"the multipart form cannot be read: {error}") from error
    except OSError as error:
        raise check_space(error) from error
    return reader.form


class _FormReader:
    """What the parser calls. Parts come one after the other: head, data, end."""

    def __init__(self, file: BinaryIO) -> None:
        self.form = Form()
        self._file = file
        self._header = b""
        self._value = b""
        self._name = ""
        self._text = b""
        self._is_file = False

    def callbacks(self) -> dict[str, Any]:
        names = (
            "part_begin",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
            "part_data",
            "part_end",
        )
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self._name, self._text, self._is_file = "", b"", False

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            self._is_file = self._name == "file"
            if self._is_file:
                if self.form.filename is not None:
                    raise RequestError("the form holds more than one `file`; send one request for each", param="file")
                self.form.filename = options.get(b"filename", b"file").decode("utf-8", "replace")[:255]
        self._header = self._value = b""

    def headers_finished(self) -> None:
        if not self._name:
            raise RequestError("a part of the form has no name")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MAX_FIELD_BYTES or len(self.form.fields) >= _MAX_FIELDS:
            raise RequestError(
                f"the form has more than {_MAX_FIELDS} fields, or one of more than {_MAX_FIELD_BYTES} bytes"
            )

    def part_end(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._text.decode("utf-8", "replace")
