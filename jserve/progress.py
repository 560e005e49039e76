"""Progress bars on standard error."""

from tqdm import tqdm

TITLES = {"weights": "Loading weights", "compile": "Compiling", "background-compile": "Compiling behind"}


class StartupBars:
    """One bar per phase of a start. Where nobody watches (no terminal), a line every few seconds."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[None]] = {}

    def show(self, phase: str, done: int, total: int, detail: str) -> None:
        """Set a phase's bar."""
        bar = self._bars.get(phase)
        if bar is None:
            position = len(self._bars)
            bar = tqdm(
                total=total,
                desc=TITLES.get(phase, phase),
                position=position,
                mininterval=0.2,
                bar_format="{desc:<18} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} {elapsed} {postfix}",
            )
            self._bars[phase] = bar
        if detail:
            bar.set_postfix_str(detail, refresh=False)
        bar.update(done - bar.n)

    def close(self) -> None:
        """Leave the bars as they are."""
        for bar in self._bars.values():
            bar.set_postfix_str("", refresh=False)
            bar.close()
        self._bars.clear()
