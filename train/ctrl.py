"""``python train/ctrl.py …`` is ``allmrec train ctrl …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "ctrl", *sys.argv[1:]])
