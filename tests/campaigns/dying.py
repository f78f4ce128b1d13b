"""``allmrec`` in a process that ends itself: at the file operation ``DYING_AT``, or after ``DYING_AFTER`` seconds.

By the signal ``DYING_BY``. With ``DYING_COUNT`` it goes on to its end and writes there how many operations it made.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from allmrec_jax import cli, fileio

done = 0
lock = threading.Lock()


def counted(operation: Any) -> Any:
    """``operation``, with the end before it where it is the one."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        global done
        with lock:
            number, done = done, done + 1
        if number == int(os.environ.get("DYING_AT", -1)):
            os.kill(os.getpid(), int(os.environ["DYING_BY"]))
        return operation(*arguments, **named)

    return wrapped


for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
    setattr(os, name, counted(getattr(os, name)))
fileio._exchange = counted(fileio._exchange)

if "DYING_AFTER" in os.environ:
    end = threading.Timer(float(os.environ["DYING_AFTER"]), os.kill, (os.getpid(), int(os.environ["DYING_BY"])))
    end.daemon = True
    end.start()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told its background jobs to ignore it
try:
    cli.main()
finally:
    if "DYING_COUNT" in os.environ:
        Path(os.environ["DYING_COUNT"]).write_text(str(done))
