"""Which cache group each layer is in, and which arrays of the cache it writes to.

All groups take pages from one pool, so a page has to be of one size whichever group has it: each group has at most as
many layers as there are lanes, sets of arrays that hold the pages of one layer of every group.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from jserve.schedule.groups import Windows

T = TypeVar("T")
MAX_GROUPS = 8
"""Page tables of a sequence. Each costs a step a little time, on the host and on the device."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Where the cache of each layer is."""

    groups: tuple[int, ...]
    lanes: tuple[int, ...]

    @classmethod
    def of(cls, layer_windows: Sequence[int | None], windows: Windows) -> Self:
        """The layout of layers in groups with these `windows`; one group takes all layers, whatever theirs are."""
        if len(windows) == 1:
            return cls((0,) * len(layer_windows), tuple(range(len(layer_windows))))
        lanes, seen = _lanes(layer_windows, windows), Counter[int | None]()
        groups, places = [], []
        for window in layer_windows:
            group, lane = divmod(seen[window], lanes)
            groups.append(windows.index(window) + group)
            places.append(lane)
            seen[window] += 1
        return cls(tuple(groups), tuple(places))

    def of_lanes(self, layers: Sequence[T]) -> tuple[T, ...]:
        """What each lane keeps, from what each layer does."""
        by_lane = dict(zip(self.lanes, layers, strict=True))
        return tuple(by_lane[lane] for lane in range(len(by_lane)))


def _lanes(layer_windows: Sequence[int | None], windows: Windows) -> int:
    return max(-(-count // windows.count(window)) for window, count in Counter(layer_windows).items())


def choose_windows(layer_windows: Sequence[int | None], *, alike: bool) -> Windows:
    """The windows of the groups: several groups may share one, so that none has many more layers than another.

    Lanes that a group has no layer for are lost. Chosen is what makes the fewest: in short contexts, where all groups
    hold as many pages, or in long ones, where those that see everything hold nearly all, whichever is worse. Layers
    that are not `alike` in what they keep cannot share lanes, and keep everything where their windows differ.
    """
    counts = Counter(layer_windows)
    if len(counts) == 1:
        return (layer_windows[0],)
    if not alike:
        return (None,)
    order = sorted(counts, key=lambda window: (window is not None, -(window or 0)))

    def groups(lanes: int) -> list[int]:
        return [-(-counts[window] // lanes) for window in order]

    def loss(lanes: int) -> tuple[float, int]:
        short = sum(groups(lanes)) * lanes / len(layer_windows)
        return max(short, groups(lanes)[0] * lanes / counts[order[0]]), -lanes

    most = max(MAX_GROUPS, len(counts))
    lanes = min((n for n in range(1, max(counts.values()) + 1) if sum(groups(n)) <= most), key=loss)
    return tuple(window for window, count in zip(order, groups(lanes), strict=True) for _ in range(count))
