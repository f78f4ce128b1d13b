"""``python train/opt_nano.py …`` is ``allmrec train opt-nano …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "opt-nano", *sys.argv[1:]])
