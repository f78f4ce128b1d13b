"""``python eval/overall.py …`` is ``allmrec eval overall …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["eval", "overall", *sys.argv[1:]])
