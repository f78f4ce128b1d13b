"""Stage 1: align the CF model's items with their texts (paper, section 3.1, and OFFICIAL.md, sections 1 and 2).

Trained are the two autoencoders and, unless frozen, the sentence encoder; the CF model is frozen and only asked for
vectors. Texts are tokenised once; of a batch every distinct item is encoded once, at the length that the batch needs.

Shapes: B users, M distinct items, T tokens, A parts of a batch, D CF width, W text width, L latent width, N items.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax import sharding
from allmrec_jax.data.dataset import Dataset, item_texts
from allmrec_jax.data.negatives import UniformNegatives
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, load_arrays, save_arrays, write_text
from allmrec_jax.models.alignment import Alignment, alignment_losses
from allmrec_jax.models.cf.protocol import CFModel, load_cf
from allmrec_jax.models.text_encoder import SentenceEncoder, TokenTable, encode_table, encode_texts, tokenize_texts
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder, save_sentence_encoder
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.runs import Run, load_run
from allmrec_jax.settings import setting
from allmrec_jax.training.loop import LoopSettings, train_loop
from allmrec_jax.training.metrics import MetricsLogger

CF_HISTORY = 50
"""Items of a history that the CF model is shown; its own limit may be lower."""

SAVE_EVERY = 500
"""Steps between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Stage1Settings:
    """What decides a stage-1 run's numbers, with the sentence encoder that it starts from."""

    epochs: int = setting(10, "passes over the training samples")
    batch_size: int = setting(32, "samples per optimizer step")
    accumulation: int = setting(1, "parts that a batch is computed in, one after the other; must divide it")
    learning_rate: float = setting(1e-4, "Adam's, for the autoencoders")
    encoder_learning_rate: float = setting(1e-4, "Adam's, for the sentence encoder")
    beta2: float = setting(0.98, "Adam's second moment decay, the official code's")
    schedule: Literal["constant", "cosine"] = setting("constant", "of both learning rates")
    alpha: float = setting(0.5, "weight of the item reconstruction; 0 leaves it out")
    beta: float = setting(0.5, "weight of the text reconstruction; the paper's is 0.2 for Luxury Beauty and Toys")
    match_weight: float = setting(1.0, "weight of the matching loss; 0 leaves it out")
    rec_weight: float = setting(1.0, "weight of the recommendation loss; 0 leaves it out")
    latent_dim: int = setting(128, "width of the joint embeddings")
    positions: Literal["last", "all"] = setting(
        "last", "samples: each training sequence's last item, or every item but the first (A-LLMRec_all)"
    )
    negatives_too: bool = setting(False, "match and reconstruct the negative item too, as the official code does")
    mean_logits: bool = setting(False, "recommendation logits are a mean over the width, as in the official code")
    detach_texts: bool = setting(False, "the text reconstruction's target gets no gradient, as in the official code")
    freeze_encoder: bool = setting(False, "leave the sentence encoder as it is")
    cf_train_mode: bool = setting(False, "leave the CF model's dropout on, as the official code does")
    shuffle: bool = setting(True, "draw the samples' order anew in each epoch; the official code does not on one GPU")
    text_style: Literal["paper", "official"] = setting("paper", "form of an item's text, see `item_texts`")
    text_max_tokens: int = setting(512, "tokens that longer texts are cut to; the encoder's own limit holds too")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the sentence encoder's computation")
    choose: Literal["best", "last"] = setting("last", "export the epoch best on validation (loss), or the last one")
    validation_users: int = setting(1000, "users in a validation, a seeded sample; one validation each epoch")
    patience: int = setting(0, "validations without improvement before training stops; 0 is never")


PRESETS = {
    "paper": Stage1Settings(),
    "official": Stage1Settings(
        beta=0.2,
        negatives_too=True,
        mean_logits=True,
        detach_texts=True,
        cf_train_mode=True,
        shuffle=False,
        text_style="official",
    ),
    "small": Stage1Settings(
        epochs=8,
        batch_size=128,
        learning_rate=3e-3,
        encoder_learning_rate=3e-4,
        schedule="cosine",
        negatives_too=True,
        detach_texts=True,
        text_max_tokens=48,
    ),
}


class Stage1State(NamedTuple):
    """What training changes. ``params`` holds ``alignment`` and, where it is trained, ``encoder``."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]


class Part(NamedTuple):
    """A batch, or the part of one that is computed at a time; in a :class:`Sampler`'s batch with a leading A.

    ``ids`` and ``lengths`` are the tokens of the distinct items, or ``ids`` is ``None`` and ``texts`` holds their
    vectors, where the encoder is frozen.
    """

    items: Float[Any, "M D"]
    ids: Int[Any, "M T"] | None
    lengths: Int[Any, " M"] | None
    texts: Float[Any, "M W"] | None
    users: Float[Any, "B D"]
    positives: Int[Any, " B"]
    negatives: Int[Any, " B"]
    weights: Float[Any, " B"]


class Model(NamedTuple):
    """What computes the losses: the autoencoders, the sentence encoder and the settings."""

    alignment: Alignment
    encoder: SentenceEncoder
    settings: Stage1Settings

    def losses(self, params: Any, part: Part, key: jax.Array | None) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
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
    model: Model, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[Stage1State, Part], tuple[Stage1State, dict[str, jax.Array]]]:
    """The jitted training step; the state is donated.

    Every loss is a mean over the batch's users, in however many parts it is computed.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Stage1State, batch: Part) -> tuple[Stage1State, dict[str, jax.Array]]:
        parts, users = len(batch.weights), jnp.maximum(batch.weights.sum(), 1.0)
        keys = jax.random.split(jax_key(seed, "stage1/dropout", state.step), parts)

        def add_part(total: Any, part_and_key: tuple[Part, jax.Array]) -> tuple[Any, None]:
            part, key = part_and_key
            (loss, losses), gradient = jax.value_and_grad(model.losses, has_aux=True)(state.params, part, key)
            share = part.weights.sum() / users
            return jax.tree.map(lambda t, x: t + share * x, total, (losses | {"loss": loss}, gradient)), None

        names = ("match", "item_recon", "text_recon", "rec", "rec_accuracy", "loss")
        empty = ({name: jnp.zeros(()) for name in names}, jax.tree.map(jnp.zeros_like, state.params))
        (metrics, gradient), _ = jax.lax.scan(add_part, empty, (batch, keys))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = Stage1State(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        return sharding.constrain((state, metrics), P())

    return step


class Catalogue(NamedTuple):
    """What is known of each item: the CF vector, and tokens or, for a frozen encoder, the sentence vector."""

    items: Float[np.ndarray, "N+1 D"]
    tokens: TokenTable
    texts: Float[np.ndarray, "N+1 W"] | None

    def part(
        self, users: np.ndarray, positives: np.ndarray, negatives: np.ndarray, weights: np.ndarray, length: int
    ) -> Part:
        """The arrays of some samples; M grows in steps of half the number of samples, for few compiled shapes, and
        the mesh in use divides it.

        Args:
            positives: item of each sample.
            negatives: another one.
            length: of the tokens, enough for all of these items.
        """
        distinct, rows = np.unique(np.concatenate([positives, negatives]), return_inverse=True)
        grain = len(sharding.padded_rows(max(len(positives) // 2, 1), sharding.AXES))
        distinct = np.pad(distinct, (0, -len(distinct) % grain))
        ids, lengths = self.tokens.take(distinct, length) if self.texts is None else (None, None)
        return Part(
            items=self.items[distinct],
            ids=ids,
            lengths=lengths,
            texts=None if self.texts is None else self.texts[distinct],
            users=users,
            positives=rows[: len(positives)].astype(np.int32),
            negatives=rows[len(positives) :].astype(np.int32),
            weights=weights.astype(np.float32),
        )


class Sampler:
    """Training batches: batch i depends on the seed and i only.

    Raises:
        UserError: there is nothing to train on, or the settings need a live CF model and this one is not.
    """

    def __init__(
        self, dataset: Dataset, cf: CFModel, catalogue: Catalogue, settings: Stage1Settings, seed: int
    ) -> None:
        if not cf.live and (settings.positions == "all" or settings.cf_train_mode):
            name = "positions all" if settings.positions == "all" else "cf_train_mode"
            raise UserError(f"{name} needs a live CF model; precomputed user vectors have one history per user")
        self.dataset, self.cf, self.catalogue = dataset, cf.at("train"), catalogue
        self.settings, self.seed = settings, seed
        self.users, self.places = dataset.training_targets(settings.positions)
        self.negatives = UniformNegatives(dataset, dataset.train_lengths)
        self.steps_per_epoch = math.ceil(len(self.users) / settings.batch_size)
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, index: int) -> Part:
        """Batch ``index``, 0-based, in A parts; the last one of an epoch is filled up with samples of weight 0."""
        settings, size = self.settings, self.settings.batch_size
        epoch, place = divmod(index, self.steps_per_epoch)
        chosen = self._order(epoch)[place * size : (place + 1) * size]
        weights = np.arange(size) < len(chosen)
        chosen = np.resize(chosen, size)
        users, places = self.users[chosen], self.places[chosen]
        histories = self.dataset.items_before(users, places, CF_HISTORY)
        key = jax_key(self.seed, "stage1/cf-dropout", index) if settings.cf_train_mode else None
        vectors = np.asarray(self.cf.user_vectors(users, histories, key=key))
        positives = self.dataset.items[self.dataset.offsets[users] + places]
        negatives = self.negatives.draw(numpy_rng(self.seed, "stage1/negatives", index), users)

        length = self.catalogue.tokens.bucket(np.concatenate([positives, negatives]))
        # From `size` on these are repeats, which fill up what the mesh in use divides.
        numbers = sharding.padded_rows(size, sharding.AXES, settings.accumulation)
        weights = weights[numbers % size] & (numbers < size)
        vectors, positives, negatives = (array[numbers % size] for array in (vectors, positives, negatives))
        rows = np.split(np.arange(len(numbers)), settings.accumulation)
        batch = _stack([self.catalogue.part(vectors[r], positives[r], negatives[r], weights[r], length) for r in rows])
        self.shapes.add((*batch.items.shape, length))
        return batch

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a sampler lives as long as its run
    def _order(self, epoch: int) -> Int[np.ndarray, "samples"]:
        if not self.settings.shuffle:
            return np.arange(len(self.users))
        return numpy_rng(self.seed, "stage1/order", epoch).permutation(len(self.users))


def _stack(parts: Sequence[Part]) -> Part:
    """Parts under each other; those with fewer distinct items are padded with rows that nothing refers to."""
    rows = max(len(part.items) for part in parts)

    def padded(name: str, arrays: Sequence[np.ndarray | None]) -> Any:
        present = [array for array in arrays if array is not None]
        if not present:
            return None
        if name in ("items", "ids", "lengths", "texts"):
            present = [np.resize(array, (rows, *array.shape[1:])) for array in present]
        return np.stack(present)

    return Part(**{name: padded(name, [getattr(part, name) for part in parts]) for name in Part._fields})


def make_validation(
    dataset: Dataset, cf: CFModel, catalogue: Catalogue, model: Model, seed: int
) -> Callable[[Stage1State], dict[str, float]]:
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

    def evaluate(state: Stage1State) -> dict[str, float]:
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
    upstream = {"cf": cf.identity, "encoder": fingerprint(encoder)}
    run = Run.open(out, dataset.name, "stage1", settings, seed, dataset.hash, upstream, resume=resume)
    if run.done:
        return run.path

    tokens = tokenize_texts(encoder, item_texts(dataset, settings.text_style), settings.text_max_tokens)
    frozen_texts = encode_table(encoder.model, encoder.params, tokens) if settings.freeze_encoder else None
    catalogue = Catalogue(cf.item_vectors(), tokens, frozen_texts)
    sampler = Sampler(dataset, cf, catalogue, settings, seed)
    total_steps = settings.epochs * sampler.steps_per_epoch

    model = Model(Alignment(cf.dim, encoder.dim, settings.latent_dim), encoder, settings)
    shapes = [jax.ShapeDtypeStruct((1, dim), jnp.float32) for dim in (cf.dim, encoder.dim)]
    params = {"alignment": model.alignment.lazy_init(jax_key(seed, "stage1/init"), *shapes)["params"]}
    if not settings.freeze_encoder:
        params["encoder"] = jax.tree.map(jnp.asarray, encoder.params)
    optimizer = make_optimizer(settings, total_steps)
    state = sharding.place(Stage1State(params, optimizer.init(params), jnp.zeros((), jnp.int32)))
    validates = len(dataset.users_with("valid")) > 0 and settings.validation_users > 0
    with MetricsLogger(run.path, total_steps, quiet=quiet) as log:
        last, best = train_loop(
            run,
            state,
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
            monitor="loss" if validates and settings.choose == "best" else None,
            resume=resume,
            log=log,
        )
    chosen = jax.device_get((last if settings.choose == "last" else best).params)
    encoder = dataclasses.replace(encoder, params=chosen.get("encoder", encoder.params))
    export_stage1(run, model.alignment, chosen["alignment"], encoder, catalogue, dataset)
    card = {
        "item_dim": cf.dim,
        "text_dim": encoder.dim,
        "latent_dim": settings.latent_dim,
        "encoder": str(encoder_name),
        "cf": str(cf_path),
    }
    write_text(run.export_path("stage1.json"), json.dumps(card, indent=2) + "\n")
    run.finish(
        {"step": run.best_step() or total_steps, "samples": len(sampler.users), "compiled_shapes": len(sampler.shapes)}
    )
    return run.path


def export_stage1(
    run: Run, alignment: Alignment, params: Any, encoder: SentenceEncoder, catalogue: Catalogue, dataset: Dataset
) -> None:
    """Writes what :func:`load_stage1` reads: latents of all items, parameters, and the sentence encoder."""
    texts = catalogue.texts
    if texts is None:
        texts = encode_table(encoder.model, encoder.params, catalogue.tokens)
    arrays = {
        "items_joint": np.array(alignment.apply({"params": params}, catalogue.items, method="encode_items")),
        "items_text": np.array(alignment.apply({"params": params}, texts, method="encode_texts")),
    }
    for latents in arrays.values():
        latents[0] = 0  # padding
    save_arrays(run.export_path("params.safetensors"), params)
    save_sentence_encoder(run.export_path("sentence_encoder"), encoder)
    for name, array in {**arrays, "trained": dataset.train_count > 0}.items():
        with atomic_path(run.export_path(f"{name}.npy")) as sibling, sibling.open("wb") as stream:
            np.save(stream, array)


@dataclasses.dataclass(frozen=True)
class Stage1Export:
    """What stage 1 hands on.

    Attributes:
        joint: e of each item [N+1, L], from its CF vector; row 0 is zero.
        text: q of each item [N+1, L], from its text; row 0 is zero.
        trained: [N+1], whether the CF vector was trained on any interaction.
        params: of the autoencoders.
        settings: the run's.
        path: the run's directory.
    """

    joint: Float[np.ndarray, "N+1 L"]
    text: Float[np.ndarray, "N+1 L"]
    trained: Bool[np.ndarray, "N+1"]
    params: Any
    settings: Stage1Settings
    path: Path

    def item_latents(self, mode: Literal["joint", "text"] = "joint") -> Float[np.ndarray, "N+1 L"]:
        """The items' latents: ``joint`` is e, and q for items without a trained vector; ``text`` is q for all."""
        return self.text if mode == "text" else np.where(self.trained[:, None], self.joint, self.text)

    @functools.cached_property
    def encoder(self) -> SentenceEncoder:
        """The fine-tuned sentence encoder, loaded on first use."""
        return load_sentence_encoder(self.path / "export" / "sentence_encoder")

    def encode_items(self, vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n L"]:
        """e of items' CF vectors."""
        alignment = Alignment(vectors.shape[1], 0, self.joint.shape[1])  # texts take no part
        return np.asarray(alignment.apply({"params": self.params}, vectors, method="encode_items"))

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n L"]:
        """q of texts in the form of :func:`allmrec_jax.data.dataset.item_texts`, in this run's ``text_style``."""
        vectors = encode_texts(self.encoder, texts, self.settings.text_max_tokens)
        alignment = Alignment(self.joint.shape[1], vectors.shape[1], self.text.shape[1])
        return np.asarray(alignment.apply({"params": self.params}, vectors, method="encode_texts"))


def load_stage1(path: Path | str) -> Stage1Export:
    """The export of a finished ``train stage1`` run.

    Raises:
        UserError: there is none at ``path``, it is unfinished or of another kind, or a file is damaged.
    """
    path = Path(path)
    about = load_run(path)
    if about["kind"] != "stage1":
        raise UserError(f"{path} is a {about['kind']} run; a stage1 run is needed here")
    arrays = {}
    for name in ("items_joint", "items_text", "trained"):
        file = path / "export" / f"{name}.npy"
        try:
            arrays[name] = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{file}: cannot be read ({error}); train stage 1 again") from error
    params = load_arrays(path / "export" / "params.safetensors")
    settings = Stage1Settings(**about["settings"])
    return Stage1Export(arrays["items_joint"], arrays["items_text"], arrays["trained"], params, settings, path)
