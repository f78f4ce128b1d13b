"""The trainings that experiments are made of, as a graph.

A row of a table names a system and the trainings that it is made of. A training is a node: what is trained, from which
preset with which changes, on which other trainings. Its identity follows from that alone, so that a plan knows what is
finished before anything runs.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.data.dataset import Dataset, training_cut
from allmrec_jax.errors import UserError
from allmrec_jax.runs import load_run, verify_export
from allmrec_jax.settings import identity
from allmrec_jax.sharding import MeshShape
from allmrec_jax.trained.kinds import KINDS

EPOCHS = ("epochs", "contrast_epochs", "pretrain_epochs")
"""Settings that count passes over the users."""

_OPTIONS = {"encoder": "--sentence-encoder", "llm": "--llm", "longformer": "--longformer"}


@dataclasses.dataclass(frozen=True)
class Training:
    """A node of the graph.

    Attributes:
        kind: of :data:`allmrec_jax.trained.kinds.KINDS`.
        preset: whose settings it takes.
        changes: settings that differ from the preset; ``("model", …)`` chooses a CF model.
        seed: of the training.
        upstream: the nodes it builds on, in the order of the kind's ``upstream``.
    """

    kind: str
    preset: str
    changes: tuple[tuple[str, Any], ...] = ()
    seed: int = 0
    upstream: tuple["Training", ...] = ()

    @property
    def settings(self) -> Any:
        """The resolved settings; :class:`UserError` for an unknown preset, setting or model."""
        changes = dict(self.changes)
        model = {"model": changes.pop("model")} if KINDS[self.kind].by_model else {}
        return KINDS[self.kind].settings(self.preset, changes, **model)

    @property
    def models(self) -> tuple[str, ...]:
        """The roles of the pretrained models that it starts from."""
        return KINDS[self.kind].roles(self.settings)

    def nodes(self) -> Iterator["Training"]:
        """This node and all it builds on, those first."""
        for node in self.upstream:
            yield from node.nodes()
        yield self

    @property
    def name(self) -> str:
        """For people: the kind, what it differs in, and the CF model beneath it."""
        words = [str(value) if name == "model" else f"{name} {value}" for name, value in self.changes]
        words += [f"on {value}" for node in self.upstream for name, value in node.changes if name == "model"]
        return f"{self.kind} ({', '.join([*words, f'seed {self.seed}'])})"


def effective_changes(kind: str, preset: str, given: Mapping[str, Any], **own: Any) -> tuple[tuple[str, Any], ...]:
    """The changes of a node: those ``given`` by the user that it has a setting for, and the row's ``own``, which hold.

    What the preset has anyway is no change.
    """
    model = (("model", own.pop("model")),) if "model" in own else ()
    settings = Training(kind, preset, model).settings
    wanted = {name: value for name, value in {**given, **own}.items() if hasattr(settings, name)}
    return model + tuple(sorted((name, value) for name, value in wanted.items() if getattr(settings, name) != value))


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table, at one seed.

    Attributes:
        name: as the table shows it.
        system: whose way of answering it takes, an entry of ``SYSTEMS``.
        trainings: what the system is given.
        against: rows that its Hit@1 is compared with, beside the table's reference.
        llm: whether it reads long prompts, and may be asked about fewer users.
    """

    name: str
    system: str
    trainings: tuple[Training, ...]
    against: tuple[str, ...] = ()
    llm: bool = False

    @property
    def seed(self) -> int:
        """Of its trainings; 0 where nothing is trained."""
        return self.trainings[-1].seed if self.trainings else 0

    def nodes(self) -> list[Training]:
        """Every training that the row needs, upstream first, each once."""
        return list(dict.fromkeys(node for training in self.trainings for node in training.nodes()))


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Where an experiment works, and with which pretrained models.

    Attributes:
        dataset: that everything is trained and asked on.
        checkpoints: the directory of training runs.
        models: name or path of the pretrained models, by role.
        mesh: of devices that trainings use.
    """

    dataset: Dataset
    checkpoints: Path
    models: Mapping[str, str]
    mesh: MeshShape | None = None

    def model_hash(self, role: str, settings: Any) -> str:
        """What a pretrained model is known by in identities; :class:`UserError` where it is not there."""
        found = _model_hash(role, self.models[role], settings.dtype if role == "encoder" else None)
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found

    def identity(self, node: Training) -> str:
        """The identity that the node's run has, or will have."""
        settings, kind = node.settings, KINDS[node.kind]
        upstream = {role: self.identity(other) for role, other in zip(kind.upstream, node.upstream, strict=True)}
        upstream |= {role: self.model_hash(role, settings) for role in node.models}
        named = getattr(settings, "kind", node.kind)
        return identity(named, settings, node.seed, self.dataset.hash, upstream)

    def path(self, node: Training) -> Path:
        """The node's run directory."""
        named = getattr(node.settings, "kind", node.kind)
        return self.checkpoints / self.dataset.name / named / self.identity(node)[:12]

    def done(self, node: Training) -> bool:
        """Whether its run is finished and whole."""
        path = self.path(node)
        return (path / "DONE").is_file() and not self.damaged(node)

    def damaged(self, node: Training) -> bool:
        """Whether the run says that it is finished but has a lost or damaged ``run.json`` or export."""
        path = self.path(node)
        if not (path / "DONE").is_file():
            return False
        try:
            same = load_run(path)["identity"] == self.identity(node)
            verify_export(path)
        except UserError:
            return True
        return not same or not any((path / "export").glob("*"))

    def command(self, node: Training) -> list[str]:
        """The arguments of ``allmrec`` that train the node."""
        kind = KINDS[node.kind]
        words = ["train", node.kind, "--data", str(self.dataset.path), "--preset", node.preset]
        for name, value in node.changes:
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif name not in kind.fixed:
                words += [flag, str(value)]
        for role, other in zip(kind.upstream, node.upstream, strict=True):
            words += [f"--{role}", str(self.path(other))]
        for role in node.models:
            words += [_OPTIONS[role], self.models[role]]
        if self.mesh is not None:
            words += ["--mesh", str(self.mesh)]
        return [*words, "--seed", str(node.seed), "--checkpoints", str(self.checkpoints), "--resume"]


@functools.cache
def _model_hash(role: str, name: str, dtype: str | None) -> str | UserError:
    """A model's hash, or why there is none: found once for all tables, for it may mean 13 GB or a hub out of reach."""
    import jax.numpy as jnp

    try:
        if role == "llm":
            from allmrec_jax.pretrained.llm import llm_hash

            return llm_hash(name)
        if role == "longformer":
            from allmrec_jax.pretrained.longformer import load_longformer

            return load_longformer(name).fingerprint
        from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder

        return fingerprint(load_sentence_encoder(name, jnp.dtype(dtype)))
    except UserError as error:
        return error


def trainings_of(rows: Sequence[Row]) -> list[Training]:
    """Every training that the rows need, each once, after all that it builds on."""
    return list(dict.fromkeys(node for row in rows for node in row.nodes()))


def levels(nodes: Sequence[Training]) -> list[list[Training]]:
    """The nodes in groups, each after all that it builds on; those of one group need nothing of each other."""
    depth: dict[Training, int] = {}
    for node in nodes:
        depth[node] = max((depth[other] + 1 for other in node.upstream if other in depth), default=0)
    return [[node for node in nodes if depth[node] == level] for level in range(max(depth.values(), default=-1) + 1)]


def units(work: Workplace, node: Training) -> float:
    """The amount of training in a run of this kind, in steps or in passes over a user."""
    settings = node.settings
    if getattr(settings, "steps", 0):
        return float(settings.steps)
    trained_on = training_cut(work.dataset.lengths)
    everywhere = getattr(settings, "positions", "last") == "all"
    samples = float(np.maximum(trained_on - 1, 1).sum() if everywhere else len(trained_on))
    return samples * sum(getattr(settings, name, 0) for name in EPOCHS)
