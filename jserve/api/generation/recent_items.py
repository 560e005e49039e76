"""The newest items of answers, for clients that refer to an item instead of sending it.

Nothing else is kept of a conversation, and these are forgotten: the oldest when there are many, all at a restart.
"""

from collections import OrderedDict
from typing import Any

import msgspec

MAX_BYTES = 64 << 20
MAX_ITEM_BYTES = 1 << 20
"""A larger item is not kept."""


class RecentItems:
    """Items by the key of their caller and their id. A caller finds its own alone."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._items: OrderedDict[tuple[bytes, str], bytes] = OrderedDict()

    def add(self, caller: bytes, item_id: str, item: msgspec.Struct) -> None:
        """Keep an item, in the place of an older one of this id."""
        encoded = msgspec.json.encode(item)
        if len(encoded) > MAX_ITEM_BYTES:
            return
        self._num_bytes += len(encoded) - len(self._items.pop((caller, item_id), b""))
        self._items[caller, item_id] = encoded
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= len(self._items.popitem(last=False)[1])

    def find(self, caller: bytes, item_id: str) -> dict[str, Any] | None:
        """The item as a client would send it, None where it is not kept."""
        encoded = self._items.get((caller, item_id))
        return None if encoded is None else msgspec.json.decode(encoded)
