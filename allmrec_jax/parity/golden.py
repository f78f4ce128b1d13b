"""Numbers recorded from the official code, for comparing without a clone.

Recorded twice, by ``python -m allmrec_jax.parity.golden --official CLONE``: under today's libraries all components, and
under transformers 4.32.1 (in an environment of its own, with torch and no JAX) the prompts and the generation, whose
behaviour has changed since. Large tensors are recorded at evenly spaced places.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.parity.reference import COMPONENTS, DRAWN, ONLY_A_CLONE, Drawn, Outputs, Source, Steps
from allmrec_jax.parity.tolerances import EXCLUDED

FOLDER = Path(__file__).parent
RECORDED = {
    "official.npz": "official code, recorded",
    "official_transformers_4.npz": "official code, transformers 4.32.1",
}
"""Files beside this one, and the reference that each is."""

SAMPLES = 256
"""Places at which a large tensor is recorded."""

OLD = ("Prompts", "Generation", "Generation, official settings")
"""Components recorded under transformers 4.32.1."""

STEPS = Steps()


class Golden:
    """The recorded outputs in a file.

    Args:
        file: one of :data:`RECORDED`.
    """

    def __init__(self, file: str) -> None:
        self.name, self.path = RECORDED[file], FOLDER / file
        with np.load(self.path, allow_pickle=False) as arrays:
            self.arrays = dict(arrays)
        self.sources = {name: Source(*source) for name, source in json.loads(str(self.arrays.pop("sources"))).items()}

    def components(self) -> Sequence[str]:
        """Those recorded."""
        return [name for name in COMPONENTS if name in self.sources]

    def source(self, component: str) -> Source:
        """What was recorded: the clone's file."""
        return self.sources[component]

    def outputs(self, component: str) -> Outputs:
        """The recorded arrays; large tensors are their samples."""
        prefix = component + "|"
        return {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}

    def replay(self, component: str, drawn: Drawn) -> Outputs:
        """The recorded arrays, batches among them: they show where the product draws otherwise by now."""
        return self.outputs(component)

    def select(self, outputs: Outputs) -> Outputs:
        """Ours at the recorded places."""
        return record(outputs)


def sample(values: np.ndarray) -> np.ndarray:
    """A large array at :data:`SAMPLES` evenly spaced places of its flat form; a small one as it is."""
    if values.size <= SAMPLES:
        return values
    return values.reshape(-1)[np.linspace(0, values.size - 1, SAMPLES).astype(np.int64)]


def record(outputs: Outputs) -> Outputs:
    """What is kept of a component's outputs: inputs and whole numbers in full."""
    kept = {}
    for name, values in outputs.items():
        if not name.endswith(EXCLUDED):
            values = np.asarray(values)
            values = values.astype(np.int32) if values.dtype == np.int64 else values
            kept[name] = values if name.startswith(("input/", "exact/", "curve/")) else sample(values)
    return kept


def _computed(reference: Any, component: str) -> Outputs:
    if component not in DRAWN:
        return reference.outputs(component)
    from allmrec_jax.parity.ours import DRAWING

    return reference.replay(component, DRAWING[component](STEPS)[1])


def main() -> None:
    """Records the file that belongs to this environment's transformers."""
    from allmrec_jax.parity.official import SLOW, Official

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--official", type=Path, required=True, help="a clone of the official repository")
    reference = Official(parser.parse_args().official)
    recordable = [name for name in reference.components() if name not in ONLY_A_CLONE]
    file, components = ("official_transformers_4.npz", OLD) if SLOW else ("official.npz", recordable)
    arrays = {
        f"{component}|{name}": value
        for component in components
        for name, value in record(_computed(reference, component)).items()
    }
    sources = json.dumps({component: reference.source(component) for component in components})
    np.savez_compressed(FOLDER / file, sources=np.asarray(sources), **arrays)  # type: ignore[arg-type]
    print(FOLDER / file)


if __name__ == "__main__":
    main()
