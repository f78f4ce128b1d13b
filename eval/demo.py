"""``python eval/demo.py …`` is ``allmrec experiment demo …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["experiment", "demo", *sys.argv[1:]])
