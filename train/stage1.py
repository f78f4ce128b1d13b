"""``python train/stage1.py …`` is ``allmrec train stage1 …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "stage1", *sys.argv[1:]])
