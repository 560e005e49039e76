"""The sentence at the end of a report: stay with one small machine, or move to a server, and by which numbers."""

from jserve.commands.workload.statistics import WAIT_S, Statistics

FEW_AT_ONCE = 2
"""Requests that a program which answers one after the other bears: the second waits for the first."""
_FEW_WAIT, _FEW_REFUSED = 0.05, 0.01


def moves(statistics: Statistics) -> bool:
    """Whether the workload has outgrown a program that answers one request after the other."""
    return (
        statistics.at_once.p95 > FEW_AT_ONCE
        or statistics.waited > _FEW_WAIT
        or statistics.refused + statistics.failed > _FEW_REFUSED
    )


def decide(statistics: Statistics) -> str:
    """The decision with its numbers."""
    at_once, busy = statistics.at_once, max(1.0, statistics.at_once.p95)
    seen = (
        f"95% of the time at most {at_once.p95:.0f} requests were open at once (the most: {at_once.most:.0f}), "
        f"{_percent(statistics.waited)} waited more than {WAIT_S:.0f} s, and "
        f"{_percent(statistics.refused + statistics.failed)} were refused or failed"
    )
    if moves(statistics):
        return (
            f"Move to a server that answers many at once: {seen}. It needs a context of "
            f"{statistics.context.most:,.0f} tokens and {statistics.output_a_second:,.0f} generated tokens a second in "
            f"the busiest minute; a prefix cache may spare {_percent(statistics.shared)} of the prompts."
        )
    room = (FEW_AT_ONCE + 1) / busy
    return (
        f"Stay with one small machine: {seen}. Look again when the load has grown {room:.1f} times, to more than "
        f"{FEW_AT_ONCE} requests at once for 5% of the time, or when more than {_percent(_FEW_WAIT)} wait."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if 0 < share < 0.1 else f"{100 * share:.0f}%"
