"""``python train/stage2.py …`` is ``allmrec train stage2 …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "stage2", *sys.argv[1:]])
