"""Tool calls of a conversation that no tool's message has answered yet."""

from collections import OrderedDict, defaultdict, deque


class OpenCalls:
    """Calls by id and by name, in the order in which they were made; every operation takes constant time."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self._ids: defaultdict[str, deque[str]] = defaultdict(deque)

    def add(self, call_id: str, name: str) -> None:
        """A call was made."""
        self._names[call_id] = name
        self._ids[name].append(call_id)

    def close(self, call_id: str | None, name: str | None) -> tuple[str | None, str | None]:
        """Id and name of the call that is answered: the one with this id, or else the first with this name.

        With neither it is the first of all. What is not known of a call is returned as it came.
        """
        if not call_id:
            call_id = self._first(name)
        known = self._names.pop(call_id, None) if call_id else None
        return call_id, name or known

    def _first(self, name: str | None) -> str | None:
        if not name:
            return next(iter(self._names), None)
        waiting = self._ids[name]
        while waiting:
            if (call_id := waiting.popleft()) in self._names:
                return call_id
        return None
