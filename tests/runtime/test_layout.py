"""Which layers share pages: every layer has arrays of its own within its group, and few arrays are left unused."""

import pytest

from jserve.runtime.layout import MAX_GROUPS, CacheLayout, choose_windows

PATTERNS = {
    "llama": ([None] * 32, (None,), 32),
    "mistral": ([4096] * 32, (4096,), 32),
    "gemma 2 9b": ([4096, None] * 21, (None, 4096), 21),
    "gpt-oss 20b": ([128, None] * 12, (None, 128), 12),
    "cohere 2 7b": ([4096, 4096, 4096, None] * 8, (None, 4096, 4096, 4096), 8),
    "gemma 3 12b": ([*[1024] * 5, None] * 8, (None, *[1024] * 5), 8),
    "gemma 3 4b": ([*[1024] * 5, None] * 5 + [1024] * 4, (None, *[1024] * 6), 5),
    "two windows": ([None, 8, 8, 16] * 3, (None, 16, 8, 8), 3),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_layers_of_one_window_make_groups_of_about_as_many_layers(name: str) -> None:
    layer_windows, windows, lanes = PATTERNS[name]
    assert choose_windows(layer_windows, alike=True) == windows
    layout = CacheLayout.of(layer_windows, windows)
    assert max(layout.lanes) + 1 == lanes


@pytest.mark.parametrize("full", [1, 2, 7, 10])
@pytest.mark.parametrize("windowed", [1, 3, 29, 52, 62])
def test_no_two_layers_of_a_group_share_arrays_whatever_their_numbers(full: int, windowed: int) -> None:
    layer_windows = [None] * full + [9] * windowed
    windows = choose_windows(layer_windows, alike=True)
    layout = CacheLayout.of(layer_windows, windows)
    assert windows[0] is None
    assert 2 <= len(windows) <= MAX_GROUPS
    assert len(set(zip(layout.groups, layout.lanes, strict=True))) == full + windowed
    assert [windows[group] for group in layout.groups] == layer_windows
    assert set(layout.groups) == set(range(len(windows)))


def test_layers_that_keep_different_things_share_no_arrays() -> None:
    layer_windows = [None, 9, None, 9]
    windows = choose_windows(layer_windows, alike=False)
    assert windows == (None,)
    layout = CacheLayout.of(layer_windows, windows)
    assert layout.groups == (0, 0, 0, 0)
    assert layout.of_lanes("abcd") == tuple("abcd")


def test_a_lane_keeps_what_its_layers_keep() -> None:
    assert CacheLayout.of([None, 9, None, 9], (None, 9)).of_lanes(["a", "a", "b", "b"]) == ("a", "b")
