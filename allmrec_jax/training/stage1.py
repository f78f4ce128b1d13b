"""Stage 1: align the CF model's items with their texts (A-LLMRec, Kim et al. 2024, section 3.1).

Trained are the two autoencoders and, unless frozen, the sentence encoder; the CF model is frozen and only asked for
vectors. Texts are tokenised once; of a batch every distinct item is encoded once, at the length that the batch needs.

Shapes: B users, M distinct items, T tokens, A parts of a batch, D CF width, W text width, L latent width, N items.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from allmrec_jax import sharding
from allmrec_jax.data.dataset import Dataset, item_texts
from allmrec_jax.data.negatives import UniformNegatives
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import write_text
from allmrec_jax.models.alignment import Alignment, alignment_losses
from allmrec_jax.models.cf.protocol import CF_HISTORY, CFModel, load_cf
from allmrec_jax.models.text_encoder import SentenceEncoder, encode_table, tokenize_texts
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder
from allmrec_jax.progress import announce
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import SAVE_EVERY, TrainingRun
from allmrec_jax.training.stage1_batches import Catalogue, Stage1Batch, Stage1Sampler
from allmrec_jax.training.stage1_export import export_stage1
from allmrec_jax.training.stage1_settings import Stage1Settings
from allmrec_jax.training.state import CountedState


class Stage1Model(NamedTuple):
    """What computes the losses: the autoencoders, the sentence encoder and the settings."""

    alignment: Alignment
    encoder: SentenceEncoder
    settings: Stage1Settings

    def losses(
        self, params: Any, part: Stage1Batch, key: jax.Array | None
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """The weighted sum and the four losses; ``key`` is for the encoder's dropout, ``None`` for none."""
        settings, texts = self.settings, part.texts
        if texts is None:
            rngs = None if key is None else {"dropout": key}
            variables = {"params": params["encoder"]}
            texts = self.encoder.model.apply(variables, part.ids, part.lengths, key is None, rngs=rngs)
        losses = alignment_losses(
            self.alignment.apply({"params": params["alignment"]}, part.items, texts),
            part.items,
            texts,
            part.users,
            part.positives,
            part.negatives,
            part.weights,
            negatives_too=settings.negatives_too,
            mean_logits=settings.mean_logits,
            detach_texts=settings.detach_texts,
        )
        weights = {
            "match": settings.match_weight,
            "item_recon": settings.alpha,
            "text_recon": settings.beta,
            "rec": settings.rec_weight,
        }
        return sum((weight * losses[name] for name, weight in weights.items()), jnp.zeros(())), losses


def make_optimizer(settings: Stage1Settings, total_steps: int) -> optax.GradientTransformation:
    """Adam, with a learning rate for the autoencoders and one for the encoder."""

    def adam(rate: float) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, total_steps) if settings.schedule == "cosine" else rate
        return optax.adam(schedule, b1=0.9, b2=settings.beta2)

    rates = {"alignment": settings.learning_rate, "encoder": settings.encoder_learning_rate}
    return optax.partition(
        {name: adam(rate) for name, rate in rates.items()}, lambda params: {name: name for name in params}
    )


def make_step(
    model: Stage1Model, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[CountedState, Stage1Batch], tuple[CountedState, dict[str, jax.Array]]]:
    """The jitted training step; the state is donated.

    Every loss is a mean over the batch's users, in however many parts it is computed.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: CountedState, batch: Stage1Batch) -> tuple[CountedState, dict[str, jax.Array]]:
        parts, users = len(batch.weights), jnp.maximum(batch.weights.sum(), 1.0)
        keys = jax.random.split(jax_key(seed, "stage1/dropout", state.step), parts)

        def add_part(total: Any, part_and_key: tuple[Stage1Batch, jax.Array]) -> tuple[Any, None]:
            part, key = part_and_key
            (loss, losses), gradient = jax.value_and_grad(model.losses, has_aux=True)(state.params, part, key)
            share = part.weights.sum() / users
            return jax.tree.map(lambda t, x: t + share * x, total, (losses | {"loss": loss}, gradient)), None

        names = ("match", "item_recon", "text_recon", "rec", "rec_accuracy", "loss")
        empty = ({name: jnp.zeros(()) for name in names}, jax.tree.map(jnp.zeros_like, state.params))
        (metrics, gradient), _ = jax.lax.scan(add_part, empty, (batch, keys))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = CountedState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        return sharding.constrain((state, metrics), P())

    return step


def make_validation(
    dataset: Dataset, cf: CFModel, catalogue: Catalogue, model: Stage1Model, seed: int
) -> Callable[[CountedState], dict[str, float]]:
    """The losses, without dropout, of a seeded sample of users with their validation item and one negative each."""
    settings = model.settings
    users = numpy_rng(seed, "stage1/validation-users").permutation(dataset.users_with("valid"))
    users = users[: settings.validation_users]
    histories, positives = dataset.history(users, "valid", CF_HISTORY)
    negatives = UniformNegatives(dataset, dataset.lengths - 1).draw(numpy_rng(seed, "stage1/validation"), users)
    parts = []
    size = len(sharding.padded_rows(settings.batch_size, sharding.AXES))
    for start in range(0, len(users), size):
        rows = np.arange(start, min(start + size, len(users)))
        weights, rows = np.arange(size) < len(rows), np.resize(rows, size)
        vectors = np.asarray(cf.at("valid").user_vectors(users[rows], histories[rows]))
        length = catalogue.tokens.bucket(np.concatenate([positives[rows], negatives[rows]]))
        parts.append(catalogue.part(vectors, positives[rows], negatives[rows], weights, length))
    losses = sharding.on_mesh(jax.jit(lambda params, part: sharding.constrain(model.losses(params, part, None), P())))

    def evaluate(state: CountedState) -> dict[str, float]:
        totals: dict[str, float] = {}
        for part in parts:
            loss, named = jax.device_get(losses(state.params, sharding.place_batch(part, sharding.AXES)))
            for name, value in {**named, "loss": loss}.items():
                totals[name] = totals.get(name, 0.0) + float(value) * float(part.weights.sum()) / len(users)
        return totals

    return evaluate


def train_stage1(
    dataset: Dataset,
    cf_path: Path,
    encoder_name: str | Path,
    settings: Stage1Settings,
    seed: int,
    out: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains stage 1 and exports it; returns the run's directory. A finished run of the same identity is left alone.

    Args:
        dataset: the one that the CF model was trained on.
        cf_path: a ``train cf`` run, or the user's own arrays.
        encoder_name: a sentence encoder's directory or hub name, or ``sbert-nano``.
        settings: see :class:`Stage1Settings`.
        seed: of every random draw.
        out: the checkpoints directory.
        resume: continue an interrupted run.
        quiet: show no progress.

    Raises:
        UserError: an input does not match, or as the parts raise it.
    """
    if settings.batch_size % settings.accumulation:
        raise UserError(f"accumulation {settings.accumulation} does not divide the batch size {settings.batch_size}")
    cf = load_cf(cf_path, dataset)
    encoder = load_sentence_encoder(encoder_name, jnp.dtype(settings.dtype))
    upstream, encoder = {"cf": cf.identity, "encoder": fingerprint(encoder)}, encoder.prompted(settings.text_prompt)
    training = TrainingRun.open(dataset, "stage1", settings, seed, out, upstream, resume=resume, quiet=quiet)
    if training.done:
        return training.path

    tokens = tokenize_texts(encoder, item_texts(dataset, settings.text_style), settings.text_max_tokens)
    frozen_texts = None
    if settings.freeze_encoder:
        with announce("encoding the items' texts", quiet):
            frozen_texts = encode_table(encoder.model, encoder.params, tokens)
    catalogue = Catalogue(cf.item_vectors(), tokens, frozen_texts)
    sampler = Stage1Sampler(dataset, cf, catalogue, settings, seed)
    total_steps = settings.epochs * sampler.steps_per_epoch

    model = Stage1Model(Alignment(cf.dim, encoder.dim, settings.latent_dim), encoder, settings)
    shapes = [jax.ShapeDtypeStruct((1, dim), jnp.float32) for dim in (cf.dim, encoder.dim)]
    params = {"alignment": model.alignment.lazy_init(jax_key(seed, "stage1/init"), *shapes)["params"]}
    if not settings.freeze_encoder:
        params["encoder"] = jax.tree.map(jnp.asarray, encoder.params)
    optimizer = make_optimizer(settings, total_steps)
    validates = len(dataset.users_with("valid")) > 0 and settings.validation_users > 0
    chooses = validates and settings.choose == "best"
    state = training.fit(
        CountedState.start(params, optimizer),
        sharding.on_mesh(make_step(model, optimizer, seed)),
        lambda index: sharding.place_batch(sampler(index), sharding.AXES, dimension=1),
        LoopSettings(
            total_steps,
            evaluate_every=sampler.steps_per_epoch if validates else 0,
            save_every=min(SAVE_EVERY, sampler.steps_per_epoch),
            patience=settings.patience if settings.choose == "best" else 0,
            maximize=False,
        ),
        evaluate=make_validation(dataset, cf, catalogue, model, seed) if validates else None,
        monitor="loss" if chooses else None,
    )
    chosen = jax.device_get(state.params)
    encoder = dataclasses.replace(encoder, params=chosen.get("encoder", encoder.params))
    with announce("encoding the items' texts", quiet):
        export_stage1(training.run, model.alignment, chosen["alignment"], encoder, catalogue, dataset)
    card = {
        "item_dim": cf.dim,
        "text_dim": encoder.dim,
        "latent_dim": settings.latent_dim,
        "encoder": str(encoder_name),
        "cf": str(cf_path),
    }
    write_text(training.export_path("stage1.json"), json.dumps(card, indent=2) + "\n")
    return training.finish(
        {
            "step": training.run.best_step() or total_steps,
            "samples": len(sampler.users),
            "compiled_shapes": len(sampler.shapes),
        }
    )
