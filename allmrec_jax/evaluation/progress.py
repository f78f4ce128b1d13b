"""How far an evaluation is, on a terminal or in a notebook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(name: str, users: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal or in a notebook, nothing elsewhere; yields what to call with users answered."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    shown = console.is_terminal or console.is_jupyter
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(name, total=users)
        yield lambda count: bar.advance(task, count)
