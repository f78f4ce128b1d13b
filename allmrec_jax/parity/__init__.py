"""Numerical comparison with PyTorch: the official code, stock parts, and numbers recorded from the official code.

``cases`` holds weights and inputs, and ``directories`` writes them as files. ``torch_reference`` computes with PyTorch,
out of the modules of ``stock`` or, in the ``official`` files, of the user's clone; the ``ours`` files run the product's
functions, ``watched`` sees what they draw. ``compare`` puts both side by side under ``tolerances``, and ``alterations``
makes mistakes that it must see. The reference's files do without JAX, so that its numbers can be recorded in an
environment with older libraries (:mod:`allmrec_jax.parity.golden`).
"""
