"""The parser of a connection: httptools' own, which goes on with HTTP/1.1 where a client offers another protocol.

A server may ignore `Upgrade` (RFC 9110, 7.8). llhttp ends the message right behind a head with such an offer, so its
body would be lost, and with it all that follows on the connection.
"""

from typing import Protocol

import httptools

_OFFER = frozenset({b"upgrade", b"http2-settings"})
"""Headers of an offer, which `Connection` names too."""


class HeadReceiver(Protocol):
    """Gets httptools' callbacks and keeps the head that they report, names in lower case."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


class OfferDecliningParser:
    """What uvicorn calls of `httptools.HttpRequestParser`.

    Reports a head that offers another protocol twice: first with `is_offer`, to be ignored, then without the offer.
    """

    def __init__(self, receiver: HeadReceiver) -> None:
        self._receiver = receiver
        self._renew()

    def _renew(self) -> None:
        parser = self._parser = httptools.HttpRequestParser(self._receiver)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn does with the parser that it makes.
        self.get_method, self.get_http_version = parser.get_method, parser.get_http_version
        self.should_keep_alive, self.should_upgrade = parser.should_keep_alive, parser.should_upgrade

    @property
    def is_offer(self) -> bool:
        """Whether the head that was just reported will come again. That of CONNECT, which is no offer, will not."""
        return bool(self.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """Parse `data`. Raises httptools.HttpParserError."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if not self.is_offer:
                    raise
                data = self._head_without_offer() + data[offer.args[0] :]
                self._renew()

    def _head_without_offer(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.get_method(), self._receiver.url, self.get_http_version().encode())]
        for name, value in self._receiver.headers:
            if name == b"connection":
                value = b",".join(token for token in value.split(b",") if token.strip().lower() not in _OFFER)
            if name not in _OFFER and (name != b"connection" or value):
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
