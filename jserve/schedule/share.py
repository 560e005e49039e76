"""What each tenant has had of the engine's work, so that one that waits is served before one that has had more.

The accounting is the virtual token counter of "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024):
each tenant counts the tokens computed for it, prompt and answer alike, and the one that counts fewest goes first. One
that begins to wait is lifted to those that wait already, less two steps' tokens: nobody saves up while it is idle, and
who asks for little has it at once. Two differences: a token computed again after a preemption
is not counted twice, and answers are counted a page at a time, so that no token costs the host anything.
"""

from jserve.schedule.sequence import Sequence
from jserve.schedule.waiting import WaitingQueue


class Share:
    """The requests of one tenant that have one priority."""

    __slots__ = ("backlog", "num_open", "priority", "served", "starved", "starved_of", "tenant", "waiting")

    def __init__(self, priority: int, tenant: int) -> None:
        self.priority = priority
        self.tenant = tenant
        self.served = 0
        """Virtual time: tokens computed for it, and those that it was lifted by."""
        self.backlog = 0
        """Tokens of prompts that wait or are half computed."""
        self.num_open = 0
        """Sequences that are not over."""
        self.waiting = WaitingQueue()
        self.starved: Sequence | None = None
        """The prompt that was last refused pages, until it has them: nobody of this share passes it."""
        self.starved_of = 0
        """Spare pages that it waits for."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Smaller is served first."""
        return self.priority, self.served, self.tenant

    def owe(self, sequence: Sequence, num_tokens: int) -> None:
        """Note that a sequence has so many tokens of prompt still to be computed."""
        self.backlog += num_tokens - sequence.num_owed
        sequence.num_owed = num_tokens

    def charge(self, sequence: Sequence) -> None:
        """Count what has been computed of a sequence, and was not before."""
        num_computed = sequence.num_computed
        if num_computed > sequence.num_charged:
            self.served += num_computed - sequence.num_charged
            sequence.num_charged = num_computed


class Shares:
    """All shares of the engine. One that begins to wait is at most `head_start` tokens ahead of others that do."""

    def __init__(self, head_start: int) -> None:
        self._head_start = head_start
        self._shares: dict[tuple[int, int], Share] = {}  # with open sequences, by priority and tenant
        self._served: dict[tuple[int, int], int] = {}  # of those without
        self._num_open: dict[int, int] = {}  # sequences by priority

    def open(self, priority: int, tenant: int) -> Share:
        """The share of a sequence that arrives, lifted if nothing of it waited. `close` ends the sequence."""
        share = self._shares.get((priority, tenant))
        if share is None:
            share = self._shares[priority, tenant] = Share(priority, tenant)
            share.served = self._served.pop((priority, tenant), 0)
        if not share.backlog:
            self._lift(share)
        share.num_open += 1
        self._num_open[priority] = self._num_open.get(priority, 0) + 1
        return share

    def close(self, sequence: Sequence) -> None:
        """A sequence is over. Counts are kept until no sequence of its priority is left, whoever's."""
        share = sequence.share
        share.num_open -= 1
        if share.starved is sequence:
            share.starved = None
        priority = share.priority
        if not share.num_open:
            del self._shares[priority, share.tenant]
            self._served[priority, share.tenant] = share.served
        self._num_open[priority] -= 1
        if not self._num_open[priority]:
            del self._num_open[priority]
            self._served = {key: served for key, served in self._served.items() if key[0] != priority}

    @property
    def is_one(self) -> bool:
        """Whether nobody has to share."""
        return len(self._shares) <= 1

    def in_order(self) -> list[Share]:
        """Those with prompts to compute, the one to serve first in front."""
        if len(self._shares) == 1:
            return [share for share in self._shares.values() if share.backlog]
        return sorted([share for share in self._shares.values() if share.backlog], key=_by_order)

    def _lift(self, share: Share) -> None:
        others = [other for other in self._shares.values() if other.priority == share.priority and other is not share]
        level = min((other.served for other in others if other.backlog), default=None)
        if level is None:  # nobody waits, so nobody loses
            level = max((other.served for other in others), default=0)
        share.served = max(share.served, level - self._head_start)

    def check(self, sequences: list[Sequence]) -> None:
        """Raise AssertionError naming the first broken invariant. `sequences` are all that are open."""
        for (priority, tenant), share in self._shares.items():
            mine = [sequence for sequence in sequences if sequence.share is share]
            name = f"tenant {tenant} at priority {priority}"
            assert share.num_open == len(mine) > 0, f"{name} counts {share.num_open} open sequences but has {len(mine)}"
            owed = sum(sequence.num_owed for sequence in mine)
            assert share.backlog == owed >= 0, f"{name} owes {share.backlog} tokens but its sequences {owed}"
            assert share.waiting.num_live <= share.num_open, f"{name} has more that waits than is open"
        assert sum(self._num_open.values()) == len(sequences), f"{self._num_open} open but {len(sequences)} known"


def _by_order(share: Share) -> tuple[int, int, int]:
    return share.order
