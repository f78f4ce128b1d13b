"""``python train/tallrec.py …`` is ``allmrec train tallrec …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "tallrec", *sys.argv[1:]])
