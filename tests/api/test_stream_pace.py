"""What the other tests measure a neighbour's wait with sees what holds up a server."""

import time

import pytest

from tests.api.live_server import StartServer
from tests.api.stream_pace import StreamPace, undisturbed


def test_work_in_the_loop_is_seen(start_server: StartServer) -> None:
    live = start_server("--step-ms", "5")
    with StreamPace(live) as pace:
        live.loop.call_soon_threadsafe(_work, 0.3)
    assert pace.longest_s > 0.2


@pytest.mark.slow
def test_another_thread_that_keeps_pythons_lock_is_seen_each_time(start_server: StartServer) -> None:
    live = start_server("--step-ms", "5")
    with pytest.raises(AssertionError, match="held up"):
        undisturbed(live, lambda: sum(range(30_000_000)), 0.1)


def test_an_idle_server_is_held_up_by_nothing(start_server: StartServer) -> None:
    assert undisturbed(start_server("--step-ms", "5"), lambda: time.sleep(0.3) or "done", 0.1) == "done"


def _work(cpu_s: float) -> None:
    began = time.thread_time()
    while time.thread_time() - began < cpu_s:
        pass
