"""Numerical comparison with PyTorch: the official code, stock parts, and numbers recorded from the official code.

``cases`` holds weights and inputs; ``reference``, ``stock`` and ``official`` compute with PyTorch, ``ours`` with this
project; ``compare`` puts both side by side under ``tolerances``, and ``alterations`` makes mistakes that it must see.
Only these two and ``ours`` import JAX, so that reference numbers can be recorded in an environment with older libraries
(:mod:`allmrec_jax.parity.golden`).
"""
