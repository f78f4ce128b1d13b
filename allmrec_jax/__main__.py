"""``python -m allmrec_jax``: the command line."""

from allmrec_jax.cli import main

if __name__ == "__main__":
    main()
