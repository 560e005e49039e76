"""Progress on standard error: bars on a terminal, a line now and then in a log."""

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from jserve.log import writes_json

logger = logging.getLogger(__name__)

TITLES = {"weights": "Loading weights", "compile": "Compiling", "background-compile": "Compiling behind"}
LINE_INTERVAL_S = 5.0


class StartupBars:
    """One bar per phase of a start."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}
        self._is_terminal = sys.stderr.isatty() and not writes_json()
        self._last_line = time.monotonic()

    def show(self, phase: str, done: int, total: int, detail: str) -> None:
        """Set a phase's bar."""
        if self._is_terminal:
            self._show_bar(phase, done, total, detail)
        elif done == total or time.monotonic() - self._last_line > LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            suffix = f" ({detail})" if detail and done < total else ""
            if writes_json():
                progress = {"phase": phase, "done": done, "total": total}
                logger.info("%s: %d of %d%s", TITLES.get(phase, phase), done, total, suffix, extra=progress)
                return
            print(f"{TITLES.get(phase, phase)}: {done} of {total}{suffix}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bars as they are."""
        for bar in self._bars.values():
            bar.set_postfix_str("", refresh=False)
            bar.close()
        self._bars.clear()

    def _show_bar(self, phase: str, done: int, total: int, detail: str) -> None:
        if phase not in self._bars:
            self._bars[phase] = tqdm(
                total=total,
                desc=TITLES.get(phase, phase),
                position=len(self._bars),
                bar_format="{desc:<18} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} {elapsed} {postfix}",
            )
        bar = self._bars[phase]
        bar.set_postfix_str(detail, refresh=False)
        bar.update(done - bar.n)
