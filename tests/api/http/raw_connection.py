"""A connection that sends bytes as they are, for requests that no client library would make."""

import contextlib
import socket
from types import TracebackType


class RawConnection:
    """`with RawConnection(url) as raw: raw.send(b"..."); raw.answer()`. Answers come with a content-length."""

    def __init__(self, url: str, timeout_s: float = 20.0) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self._received = b""

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send_some(self, data: bytes) -> int:
        """Send without waiting; returns how many bytes were taken."""
        timeout_s = self._socket.gettimeout()
        self._socket.setblocking(False)
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        finally:
            self._socket.settimeout(timeout_s)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return int(first.split()[1]), headers, body

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        with contextlib.suppress(ConnectionError):
            while data := self._socket.recv(1 << 16):
                self._received += data
        data, self._received = self._received, b""
        return data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(mark)
        return head

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection before the answer was complete")
        self._received += data


def post(path: str, body: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    """A POST of JSON, as it goes over the wire; the content-length is added where no framing is among `headers`."""
    lines = [b"POST %b HTTP/%b" % (path.encode(), version), b"host: localhost", b"content-type: application/json"]
    if not any(header.lower().startswith((b"content-length", b"transfer-encoding")) for header in headers):
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, *headers, b"", body])
