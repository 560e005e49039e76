"""Whether the engine's queue takes more. Counts in this process, so that a burst within one step is counted too."""

from collections import Counter
from collections.abc import Sequence

from jserve.errors import OverloadedError
from jserve.protocol import EngineStats, Request


class Admission:
    """The limits of the queue; None is without limit. Refusals are counted in `rejected` by reason.

    What may wait: sequences that are open and do not run, and prompt tokens of sequences that have not yielded
    a token yet. An idle engine takes any request, so that what is refused can be sent again with success.

    A tenant that has less than its part is not refused for what others have queued: else one key's flood would close
    the queue to all. Its part is the limit over the number of tenants with open sequences: twice the limit may wait.
    """

    def __init__(self, max_requests: int | None, max_tokens: int | None) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self.rejected: Counter[str] = Counter()
        self.unstarted: dict[str, int] = {}
        """Prompt tokens of each sequence without a token so far; kept only where their sum is limited."""
        self._tenants: dict[str, int] = {}  # of the open sequences
        self._num_open: dict[int, int] = {}  # by tenant

    def check(self, requests: Sequence[Request], *, num_open: int, max_num_seqs: int, stats: EngineStats) -> None:
        """Raise OverloadedError where `requests`, each of them one sequence, would make the queue too long.

        All are of one tenant. `num_open` sequences have been sent and are not over. While the newest `stats` show a
        queue, the engine runs what it can; otherwise it has `max_num_seqs` places. Those that are let in are open
        until `close`.
        """
        tenant = requests[0].tenant if requests else 0
        others = len(self._num_open.keys() - {tenant})
        if self._max_requests is not None and num_open:
            places = stats.num_running if stats.num_waiting else max_num_seqs
            waiting = max(0, num_open - places)
            more = max(0, num_open + len(requests) - places) - waiting
            part = (places + self._max_requests) // (1 + others)
            is_within = others and self._num_open.get(tenant, 0) + len(requests) <= part
            if more and waiting + more > self._max_requests and not is_within:
                limit = f"--max-queued-requests {self._max_requests}"
                self._refuse("queued_requests", f"{waiting} requests wait and {more} more are above {limit}")
        if self._max_tokens is not None:
            waiting, more = sum(self.unstarted.values()), _num_tokens(requests)
            is_within = others and self._num_unstarted(tenant) + more <= self._max_tokens // (1 + others)
            if waiting and waiting + more > self._max_tokens and not is_within:
                limit = f"--max-queued-tokens {self._max_tokens}"
                self._refuse("queued_tokens", f"{waiting} prompt tokens wait and {more} more are above {limit}")
            self.unstarted.update((request.request_id, len(request.token_ids)) for request in requests)
        for request in requests:
            self._tenants[request.request_id] = tenant
        self._num_open[tenant] = self._num_open.get(tenant, 0) + len(requests)

    def close(self, request_id: str) -> None:
        """A sequence is over."""
        self.unstarted.pop(request_id, None)
        tenant = self._tenants.pop(request_id, None)
        if tenant is not None:
            self._num_open[tenant] -= 1
            if not self._num_open[tenant]:
                del self._num_open[tenant]

    def clear(self) -> None:
        """All are over: the engine is gone."""
        self.unstarted.clear()
        self._tenants.clear()
        self._num_open.clear()

    def _num_unstarted(self, tenant: int) -> int:
        """Prompt tokens of a tenant that wait."""
        return sum(count for request_id, count in self.unstarted.items() if self._tenants.get(request_id) == tenant)

    def _refuse(self, reason: str, why: str) -> None:
        self.rejected[reason] += 1
        raise OverloadedError(f"the server is overloaded: {why}; try again in a moment")


def _num_tokens(requests: Sequence[Request]) -> int:
    return sum(len(request.token_ids) for request in requests)
