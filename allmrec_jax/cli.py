"""The command ``allmrec``: a front for one program per thing to do, each imported only when it is called."""

import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import click

from allmrec_jax.commands.experiment import experiment
from allmrec_jax.commands.options import Group
from allmrec_jax.errors import STOPPED, StoppedError, UserError, end_now, first_line, out_of_memory, visible

GRACE = 3.0
"""Seconds that Ctrl-C gives a command to end by itself."""

HUGE_PAGES = "glibc.malloc.hugetlb=1"


class LazyGroup(Group):
    """A group whose commands are named by import path and described here, so that ``--help`` imports none.

    Args:
        lazy: command name to the module that holds its ``command``, and its one-line description.
        groups: the sub-groups.
        examples: command lines shown under ``--help``.
    """

    def __init__(
        self,
        name: str,
        *,
        lazy: dict[str, tuple[str, str]],
        groups: tuple[click.Command, ...] = (),
        examples: tuple[str, ...],
        **kwargs: Any,
    ):
        epilog = "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])
        super().__init__(name, {group.name or "": group for group in groups}, epilog=epilog, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order they are written below: that of the work."""
        return [*self.lazy, *self.commands]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Imports the program called ``name``."""
        if name in self.lazy:
            return importlib.import_module(self.lazy[name][0]).command
        return super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists all commands with their whole descriptions."""
        rows = [(name, help) for name, (_, help) in self.lazy.items()]
        rows += [(f"{name} …", command.short_help or "") for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


evaluate = LazyGroup(
    "eval",
    short_help="measure trained systems; never trains",
    help="Measure trained systems, all on the same seeded candidates. Never trains.",
    lazy={"overall": ("allmrec_jax.commands.evaluate", "all test users on one candidate file (Table 1)")},
    examples=(
        "allmrec eval overall --data data/movies --runs checkpoints/movies/stage2/0a1b2c3d4e5f --out runs/movies",
    ),
)

allmrec = LazyGroup(
    "allmrec",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    help="A-LLMRec in JAX: raw files in, recommendations and result tables out.",
    lazy={
        "prepare": ("allmrec_jax.commands.prepare", "raw files to a data set"),
        "fit": ("allmrec_jax.commands.fit", "train A-LLMRec: all stages, what is missing"),
        "recommend": ("allmrec_jax.commands.recommend", "recommend items for users or a history"),
        "runs": ("allmrec_jax.commands.runs", "list, show, compare and remove training runs"),
        "report": ("allmrec_jax.commands.report", "results to a self-contained HTML page"),
        "train": ("allmrec_jax.commands.train", "train one part: cf, stage1, stage2 or a baseline"),
        "presets": ("allmrec_jax.commands.presets", "the settings of each preset, side by side"),
        "plan": ("allmrec_jax.commands.plan", "memory, work and least time of a step"),
        "parity": ("allmrec_jax.commands.parity", "compare with PyTorch, component by component"),
        "convert": ("allmrec_jax.commands.convert", "from and to the official PyTorch code"),
        "synthesize": ("allmrec_jax.commands.synthesize", "write the embedded synthetic data as raw files"),
    },
    groups=(evaluate, experiment),
    examples=(
        "allmrec prepare ml-latest-small --out data/ml",
        "allmrec fit --data data/ml",
        'allmrec recommend --run RUN --item "Alien (1979)"',
    ),
)


click.version_option(package_name="allmrec-jax", message="%(prog)s %(version)s")(allmrec)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a :class:`UserError`, bad usage or an unusable file is one line and exit code 2.

    A training that SIGTERM ended exits with :data:`~allmrec_jax.errors.STOPPED`, whatever Ctrl-C ended with 130.
    """
    if args is None:
        in_utf8()
        in_huge_pages()
        _end_at_ctrl_c()
        if isinstance(sys.stdout, io.TextIOWrapper):  # it may be closed
            lines, through = sys.stdout.line_buffering, sys.stdout.write_through
            sys.stdout = _Output(sys.stdout.buffer, sys.stdout.encoding, line_buffering=lines, write_through=through)
    # XLA tells users of a "very slow compile" and how to file a bug; what fails is raised in Python all the same.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    told = logging.StreamHandler(sys.stderr)
    told.setFormatter(_Visible("%(message)s"))
    logging.basicConfig(handlers=[told])
    logging.getLogger("allmrec_jax").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that is not UTF-8 gets \xe9 for é, not a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        allmrec.main(args=args, prog_name="allmrec", standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except StoppedError as error:
        print(visible(str(error)), file=sys.stderr)
        sys.exit(STOPPED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx is not None else ""
        _fail(error.format_message() + hint)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if out_of_memory(error):
            _fail(
                f"out of memory ({first_line(error)}); lower --batch-size, take a smaller model or more devices "
                "(--mesh); `allmrec plan` says what fits"
            )
        if not isinstance(error, OSError) or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")


class _Output(io.TextIOWrapper):
    """Standard output whose disk may be full; a reader that has gone away is no error, see :func:`main`."""

    def write(self, text: str) -> int:
        if text == "":  # click tries whether text is taken, and is not to meet the full disk then
            return 0
        with self._refusals():
            return super().write(text)

    def flush(self) -> None:
        with self._refusals():
            super().flush()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # what waits to be written fails no more
            raise UserError(
                f"cannot write to standard output: {error.strerror}; what the command has written elsewhere is whole"
            ) from error


class _Visible(logging.Formatter):
    """What a file or a title holds is shown to the terminal, not sent."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(visible, super().format(record).split("\n")))


def _end_at_ctrl_c() -> None:
    """Ctrl-C ends the process also where Python does not come to run for a while, as in a long step on a CPU.

    Python's own way, KeyboardInterrupt, has :data:`GRACE` seconds. Ending at any moment leaves no file half written.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(told, 1) != bytes([signal.SIGINT]):
            pass
        time.sleep(GRACE)
        end_now(130, "interrupted")

    threading.Thread(target=watch, daemon=True, name="ctrl-c").start()


def in_utf8() -> None:
    """Starts the process again, once, in Python's UTF-8 mode, where the locale (``C``) could not name every file."""
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def in_huge_pages() -> None:
    """Starts the process again, once, with glibc told to take large blocks in huge pages, which it reads at its start.

    XLA allocates a CPU step's temporaries anew each time, and the kernel fills in pages of 4 KiB one by one: an eighth
    of a stage-2 gradient's time (``benchmarks/huge_pages.py``).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and sys.executable and HUGE_PAGES.partition("=")[0] not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, HUGE_PAGES)))
        with contextlib.suppress(OSError):  # an interpreter that this user may not start again: slower, not ended
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _fail(message: str) -> None:
    print("error: " + visible(" ".join(message.split())), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
