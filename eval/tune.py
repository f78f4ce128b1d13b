"""``python eval/tune.py …`` is ``allmrec experiment tune …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["experiment", "tune", *sys.argv[1:]])
