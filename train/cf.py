"""``python train/cf.py …`` is ``allmrec train cf …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "cf", *sys.argv[1:]])
