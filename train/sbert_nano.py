"""``python train/sbert_nano.py …`` is ``allmrec train sbert-nano …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "sbert-nano", *sys.argv[1:]])
