"""A progress bar on standard error, shown only on a terminal and only for work that takes over a second."""

from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""Takes (done, of)."""


def progress_bar(label: str) -> Progress:
    """A function that shows (done, of); work that starts anew begins a new bar."""
    bar: tqdm | None = None

    def show(done: int, of: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=label, total=of, delay=1, disable=None)
        bar.update(done - bar.n)
        if done >= of:
            bar.close()
            bar = None

    return show
