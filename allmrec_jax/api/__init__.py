"""The Python API, by topic; ``import allmrec_jax`` offers all of it."""
