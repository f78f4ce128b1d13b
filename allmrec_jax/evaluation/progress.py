"""How far an evaluation is, on a terminal or in a notebook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(name: str, users: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal or in a notebook, nothing elsewhere; yields what to call with users answered."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from allmrec_jax.progress import live_console

    columns = (TextColumn(name), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    console = live_console()
    with Progress(*columns, console=console, transient=True, disable=console is None) as bar:
        task = bar.add_task(name, total=users)
        yield lambda count: bar.advance(task, count)
