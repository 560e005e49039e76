"""Decides whether a connection is read: uvicorn's flow control, which the connection can overrule."""

from uvicorn.protocols.http.flow_control import FlowControl


class ReadGate(FlowControl):
    """While it is held, the connection is not read. uvicorn would resume whenever a handler waits for its client."""

    is_held = False

    def hold(self) -> None:
        """Read no more until `release`."""
        if not self.is_held:
            self.is_held = True
            self.pause_reading()

    def release(self) -> None:
        """Go on reading."""
        if self.is_held:
            self.is_held = False
            self.resume_reading()

    def resume_reading(self) -> None:
        """Read on, as uvicorn wants, unless the gate is held."""
        if not self.is_held:
            super().resume_reading()
