"""A progress bar on stderr: tqdm's, or plain lines where tqdm is not installed."""

from __future__ import annotations

import sys


class Lines:
    """What :func:`bar` uses of tqdm, as a line per description."""

    def __init__(self, total: int):
        self._total, self._done = total, 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self._done += n

    def set_description(self, text: str) -> None:
        self.write(f"[{self._done}/{self._total}] {text}")

    def set_postfix_str(self, text: str) -> None:
        """Too much for lines."""

    def write(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def bar(total: int):
    """A bar of ``total`` steps; use it as a context, and its ``write`` to print beside it."""
    try:
        from tqdm import tqdm
    except ImportError:
        return Lines(total)

    class Bar(tqdm):
        def set_postfix_str(self, text: str) -> None:
            # In a log, where nobody watches, a line per case is enough.
            super().set_postfix_str(text, refresh=sys.stderr.isatty())

        def write(self, text: str) -> None:
            super().write(text, file=sys.stderr)

    return Bar(total=total, unit="case", dynamic_ncols=True)
