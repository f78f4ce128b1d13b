"""``python train/mlp_llm.py …`` is ``allmrec train mlp-llm …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["train", "mlp-llm", *sys.argv[1:]])
