"""``python train/recformer.py …`` is ``allmrec train recformer …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "recformer", *sys.argv[1:]])
