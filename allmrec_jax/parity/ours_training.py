"""Our side of the trainings: the product's own, from a data set on disk to the parameters that it exports.

Beside each compiled step its draws are watched (:mod:`allmrec_jax.parity.watched`), for the reference to take them too.

Shapes: B batch, T time, K candidates.
"""

import contextlib
import inspect
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from allmrec_jax.fileio import load_arrays
from allmrec_jax.models.cf import protocol, sequential
from allmrec_jax.models.cf.sasrec import SASRecCF
from allmrec_jax.official import parameters as official
from allmrec_jax.parity import cases
from allmrec_jax.parity.ours_files import (
    cf_settings,
    files,
    projector_params,
    projector_states,
    stage1_settings_at,
    stage2_settings_at,
)
from allmrec_jax.parity.ours_forward import official_pieces, stage1_state, style
from allmrec_jax.parity.reference import Drawn, DrawnStep, Outputs, Prompts, Steps, kind
from allmrec_jax.parity.watched import MASK, Watched, named, sasrec_masks, without_gradients
from allmrec_jax.training import cf, stage1, stage1_batches, stage1_export, stage2, stage2_batches

SEED = 7


def sasrec_training(steps: Steps) -> tuple[Outputs, Drawn]:
    """Preset ``official``: users drawn with replacement, every history at all T columns."""
    return _train_sasrec(cf_settings("official", epochs=steps.cf))


def short_histories(steps: Steps) -> tuple[Outputs, Drawn]:
    """Preset ``paper``: each user once in an epoch, and short histories at fewer columns, their pads in one."""
    return _train_sasrec(cf_settings("paper", epochs=steps.cf, choose="last", patience=0))


def _train_sasrec(settings: Any) -> tuple[Outputs, Drawn]:
    dataset = files().load()
    start: list[Outputs] = []
    losses: list[Any] = []
    found: list[DrawnStep] = []
    train_epoch = cf.train_epoch
    watch = Watched(train_epoch, static=(0, 1, 2))

    def epoch(model: Any, settings: Any, steps: int, state: Any, data: Any, key: Any) -> Any:
        if not start:
            start.append(official.sasrec_state(jax.device_get(state.params)))
        with without_gradients(), _telling_buckets(watch):
            buckets = _buckets(watch(model, settings, steps, state, data, key))
        count = len(data.buckets)
        found.extend(_joined(buckets[first : first + count]) for first in range(0, len(buckets), count))
        state, metrics = train_epoch(model, settings, steps, state, data, key)
        losses.append(metrics["loss"])
        return state, metrics

    with tempfile.TemporaryDirectory() as out, mock.patch.object(cf, "train_epoch", epoch):
        model: Any = protocol.load_cf(cf.train_cf(dataset, settings, SEED, out, quiet=True), dataset)
    drawn = Drawn(start[0], found, len(found) // len(losses))
    trained = kind("final", official.sasrec_state(jax.device_get(model.params)))
    return _outputs(drawn, losses) | _users(drawn) | trained, drawn


@contextlib.contextmanager
def _telling_buckets(watch: Watched) -> Iterator[None]:
    """Lets the CF model's loss tell of its users and their tokens, and after the masks of the negatives."""
    bucket_loss, draw = cf.bucket_loss, cf.draw_free_items

    def draw_free_items(*args: Any) -> Any:
        drawn = draw(*args)
        watch.tell("negatives", drawn)
        return drawn

    def loss(model: Any, kind: Any, params: Any, bucket: cf.Bucket, *rest: Any) -> Any:
        watch.tell("users", bucket.users)
        watch.tell("tokens", bucket.tokens)
        return bucket_loss(model, kind, params, bucket, *rest)

    with mock.patch.object(cf, "bucket_loss", loss), mock.patch.object(cf, "draw_free_items", draw_free_items):
        yield


def _buckets(told: list[tuple[str, np.ndarray]]) -> list[DrawnStep]:
    """What every call of the CF model's loss drew: a call is a bucket of a step."""
    begins = [place for place, (name, _) in enumerate(told) if name == "users"]
    found = []
    for begin, end in zip(begins, [*begins[1:], len(told)], strict=True):
        part = told[begin:end]
        (users,), (tokens,), (negatives,) = (named(part, name) for name in ("users", "tokens", "negatives"))
        real = tokens.any(axis=1)  # rows past the end are no users
        items, positives = (_wide(columns) for columns in (tokens[:, :-1], tokens[:, 1:]))
        # What follows no item is no target.
        positives = np.where(items > 0, positives, 0)
        drawn = np.where(positives > 0, _wide(negatives), 0)
        masks = [mask[real] for mask in sasrec_masks(named(part, MASK), cases.LENGTH)]
        found.append(DrawnStep(users[real] + 1, items[real], positives[real], drawn[real], masks))
    return found


def _wide(columns: np.ndarray) -> np.ndarray:
    """[B, L] as [B, T], padded on the left."""
    return np.pad(columns, ((0, 0), (cases.LENGTH - columns.shape[1], 0)))


def _joined(buckets: list[DrawnStep]) -> DrawnStep:
    """The buckets of a step under each other."""

    def together(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in buckets])

    masks = [np.concatenate(parts) for parts in zip(*(part.masks for part in buckets), strict=True)]
    return DrawnStep(together("users"), together("items"), together("positives"), together("negatives"), masks)


def _outputs(drawn: Drawn, losses: list[Any]) -> Outputs:
    """What all trainings are compared in beside their parameters."""
    curve = np.asarray([float(loss) for loss in losses], np.float32)
    return {"curve/loss": curve, "exact/repeats": drawn.repeats()} | drawn.batches()


def _users(drawn: Drawn) -> Outputs:
    return {"exact/users drawn": np.unique(np.concatenate([step.users for step in drawn.steps])).astype(np.int32)}


@contextlib.contextmanager
def _watched_samples(sampler: type, *methods: tuple[type, str]) -> Iterator[list[dict[str, Any]]]:
    """The arguments that a sampler gives to these methods for each batch; SASRec's masks; and the batch."""
    found: list[dict[str, Any]] = []
    hidden: list[Any] = []
    watch = Watched(sequential._last_hidden, static=(0,))
    make: Callable[..., Any] = sampler.__call__

    def sample(self: Any, index: int) -> Any:
        told: dict[str, Any] = {}

        def listening(original: Callable[..., Any]) -> Callable[..., Any]:
            def listen(*args: Any, **options: Any) -> Any:
                told.update(inspect.signature(original).bind(*args, **options).arguments)
                if original is user_vectors:
                    told["sampled"] = told["users"]  # the users; another method may call their vectors so
                    with mock.patch.object(sequential, "_last_hidden", lambda *given: hidden.append(watch(*given))):
                        original(*args, **options)
                    told["masks"] = sasrec_masks(named(hidden.pop(), MASK), cases.LENGTH)
                return original(*args, **options)

            return listen

        with contextlib.ExitStack() as patches:
            for owner, name in ((SASRecCF, "user_vectors"), *methods):
                patches.enter_context(mock.patch.object(owner, name, listening(getattr(owner, name))))
            told["batch"] = make(self, index)
        found.append(told)
        return told["batch"]

    user_vectors = SASRecCF.user_vectors
    with mock.patch.object(sampler, "__call__", sample):
        yield found


def stage1_training(steps: Steps) -> tuple[Outputs, Drawn]:
    """Stage 1 with the encoder's own dropout; the last batch of an epoch is not full."""
    settings = stage1_settings_at(epochs=steps.stage1, batch_size=2 * cases.BATCH)
    dataset = files().load()
    start: list[Outputs] = []
    losses: list[Any] = []
    kept: list[list[np.ndarray]] = []
    make_step = stage1.make_step

    def watching(*args: Any) -> Callable[..., Any]:
        take = make_step(*args)
        watch = Watched(take)

        def step(state: Any, batch: Any) -> Any:
            if not start:
                params = jax.device_get(state.params)
                start.append(stage1_state(params["alignment"], params["encoder"]))
            with without_gradients():
                kept.append(named(watch(state, batch), MASK))
            state, metrics = take(state, batch)
            losses.append(metrics["loss"])
            return state, metrics

        return step

    with (
        tempfile.TemporaryDirectory() as out,
        mock.patch.object(stage1, "make_step", watching),
        _watched_samples(stage1_batches.Stage1Sampler, (stage1_batches.Catalogue, "part")) as samples,
    ):
        path = stage1.train_stage1(dataset, files().cf, files().encoder, settings, SEED, Path(out), quiet=True)
        export = stage1_export.load_stage1(path)
        final = stage1_state(export.params, export.encoder.params)
    drawn = Drawn(start[0], [_stage1_drawn(*pair) for pair in zip(samples, kept, strict=True)])
    return _outputs(drawn, losses) | _users(drawn) | kind("final", final), drawn


def _stage1_drawn(told: dict[str, Any], text_masks: list[np.ndarray]) -> DrawnStep:
    real, batch = told["weights"] > 0, told["batch"]
    rows = [batch.positives[0][real], batch.negatives[0][real]]
    return DrawnStep(
        users=told["sampled"][real] + 1,
        items=told["items"][real, -cases.LENGTH :],
        positives=told["positives"][real],
        negatives=told["negatives"][real],
        masks=[mask[real] for mask in told["masks"]],
        text_masks=[mask[chosen] for chosen in rows for mask in text_masks],
    )


def stage2_training(steps: Steps) -> tuple[Outputs, Drawn]:
    """Stage 2 on the product's prompts, with the official code's white space."""
    settings = stage2_settings_at(steps=steps.stage2, style=style())
    dataset = files().load()
    start: list[Outputs] = []
    losses: list[Any] = []
    make_step = stage2.make_step

    def watching(*args: Any) -> Callable[..., Any]:
        take = make_step(*args)

        def step(state: Any, frozen: Any, batch: Any) -> Any:
            if not start:
                start.append(projector_states(jax.device_get(state.params)))
            state, metrics = take(state, frozen, batch)
            losses.append(metrics["loss"])
            return state, metrics

        return step

    with (
        tempfile.TemporaryDirectory() as out,
        official_pieces(),
        mock.patch.object(stage2, "make_step", watching),
        _watched_samples(stage2_batches.Stage2Sampler, (stage2_batches.Stage2Sampler, "user_vectors")) as samples,
    ):
        path = stage2.train_stage2(
            dataset, files().cf, files().stage1, files().llm, settings, SEED, Path(out), quiet=True
        )
        final = projector_states(load_arrays(path / "export" / "params.safetensors", projector_params()))
    drawn = Drawn(start[0], [_stage2_drawn(told) for told in samples])
    told = [step.prompts for step in drawn.steps if step.prompts is not None]
    fields = zip(Prompts._fields, zip(*told, strict=True), strict=True)
    read = {f"exact/prompt {name}": np.concatenate(values) for name, values in fields}
    return _outputs(drawn, losses) | read | kind("final", final), drawn


def _stage2_drawn(told: dict[str, Any]) -> DrawnStep:
    question, made = told["question"], told["batch"].prompts
    room = ((0, 0), (0, cases.PROMPT_LENGTH - made.ids.shape[1]))
    others = question.candidates != question.targets[:, None]
    return DrawnStep(
        users=question.users + 1,
        items=told["items"][:, -cases.LENGTH :],
        positives=question.targets,
        negatives=question.candidates[others].reshape(len(others), -1),
        masks=told["masks"],
        candidates=question.candidates,
        prompts=Prompts(
            np.pad(made.ids, room, constant_values=1),
            np.pad(made.slot, room),
            np.pad(made.slot_index, room),
            made.items,
            made.lengths,
            made.target_start,
        ),
    )
