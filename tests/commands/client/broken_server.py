"""A server that sends the beginning of a stream and then is gone."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def broken_stream(body: str) -> Iterator[str]:
    """Its URL. It answers one request with less than the length that it announced."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + 100}\r\n\r\n"
                connection.sendall((head + body).encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
