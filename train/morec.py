"""``python train/morec.py …`` is ``allmrec train morec …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "morec", *sys.argv[1:]])
