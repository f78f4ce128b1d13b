"""``python eval/experiment.py TABLE …`` is ``allmrec experiment TABLE …``."""

import sys

from allmrec_jax.cli import main

if __name__ == "__main__":
    main(["experiment", *sys.argv[1:]])
