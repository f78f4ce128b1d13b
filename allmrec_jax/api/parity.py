"""Comparison with PyTorch, component by component."""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from allmrec_jax.errors import UserError

if TYPE_CHECKING:
    from allmrec_jax.parity.compare import Comparison

PathLike = str | os.PathLike[str]

log = logging.getLogger(__name__)


def compare_with_pytorch(
    official: PathLike | None = None,
    *,
    components: Sequence[str] = (),
    selftest: bool = False,
    out: PathLike | None = None,
) -> "Comparison":
    """Compares every component with its PyTorch counterpart, on the same weights and inputs, in float32.

    Args:
        official: a clone of the authors' repository, whose code is imported and run. By default the references are
            stock PyTorch parts, and numbers recorded from the authors' code.
        components: only these rows; by default all.
        selftest: also alter the product in each component: every row must turn red.
        out: where ``parity.json``, ``parity.md`` and ``parity.png`` go, if anywhere.

    Returns:
        The rows, what the self-test found, and whether all of it holds.

    Raises:
        UserError: an unknown component, or ``official`` is not such a clone.
    """
    import jax

    from allmrec_jax.outputs import Output
    from allmrec_jax.parity import compare
    from allmrec_jax.parity.golden import RECORDED, STEPS, Golden
    from allmrec_jax.parity.reference import COMPONENTS, Reference

    if unknown := sorted(set(components) - set(COMPONENTS)):
        raise UserError(f"unknown component {unknown[0]!r}; known: {', '.join(COMPONENTS)}")
    if out is not None:
        Output("parity report", signs=("parity.json", "parity.md")).claim(Path(out))
    recorded: list[Reference] = [Golden(file) for file in RECORDED]
    if official is None:
        from allmrec_jax.parity.stock import Stock

        references: list[Reference] = [Stock(), *recorded]
    else:
        from allmrec_jax.parity.official import Official

        references = [Official(Path(official)), recorded[1]]
    devices = [jax.devices("cpu")[0]]
    if jax.default_backend() != "cpu":
        devices.append(jax.devices()[0])

    rows, altered = [], []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # the clone's autocast
        for reference in references:
            for component in reference.components():
                if not components or component in components:
                    for device in devices:
                        rows.append(compare.compare(reference, component, STEPS, device))
                        log.info("%-8s %s (%s, %s)", rows[-1].verdict, component, reference.name, device.platform)
        if selftest:
            chosen = [row for row in COMPONENTS if not components or row in components]
            for one in compare.selftest(references, chosen, STEPS):
                altered.append(one)
                log.info("%-8s %s: %s", "red" if one.red else "NOT RED", one.component, one.alteration)
    found = compare.Comparison(tuple(rows), tuple(altered), STEPS)
    if out is not None:
        found.write(Path(out))
    return found
