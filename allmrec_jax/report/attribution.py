"""What each soft token adds to the likelihood of the true title, to first order: its gradient times itself."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from allmrec_jax.data.candidates import Candidates
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.ask import user_vectors
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.inference.llm import LLMRecommender, SoftTokens
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.models.projectors import embed_prompts
from allmrec_jax.prompts import ITEM_SLOT, USER_SLOT, PromptBatch, build_prompts
from allmrec_jax.trained.sources import EvaluationSettings, Sources
from allmrec_jax.training.stage2 import loss_behind


class SoftToken(NamedTuple):
    """One soft token: what it stands for and what it adds to the log-likelihood, in nats.

    Attributes:
        kind: ``"user"``, ``"history"`` or ``"candidate"``.
        item: the item behind it, 0 for the user's.
        value: its gradient times itself, summed over the token's numbers.
    """

    kind: str
    item: int
    value: float


@partial(jax.jit, static_argnames="llm")
def contributions(
    llm: LanguageModel,
    llm_params: Any,
    soft: SoftTokens,
    prompts: PromptBatch,
    users: Float[Array, "B D"] | None,
) -> tuple[Float[Array, "B S"], Float[Array, ""]]:
    """Gradient times input of each position of the prompts, and the summed log-likelihood of their answers."""
    embeds = embed_prompts(llm, llm_params, soft.params, prompts, users, soft.latents)

    def likelihood(embeds: Float[Array, "B S E"]) -> Float[Array, ""]:
        return -loss_behind(llm, {"params": llm_params}, embeds, prompts)[0]

    value, gradient = jax.value_and_grad(likelihood)(embeds)
    return jnp.sum((gradient * embeds).astype(jnp.float32), axis=-1), value


def attribute(
    recommender: LLMRecommender,
    histories: Int[np.ndarray, "B T"],
    candidates: Int[np.ndarray, "B K"],
    targets: Int[np.ndarray, "B"],
    users: Float[np.ndarray, "B D"] | None,
) -> list[list[SoftToken]]:
    """The soft tokens of each prompt, in its order.

    Raises:
        UserError: the system has no soft tokens.
    """
    if recommender.soft is None:
        raise UserError("this system's prompts hold no soft tokens")
    prompts = build_prompts(
        recommender.tables,
        recommender.style,
        histories[:, -recommender.history_length :],
        candidates,
        targets,
        soft=True,
        user_slot=recommender.user_slot,
        item_slots=recommender.soft.latents is not None,
    )
    known = users if recommender.user_slot else None
    values = np.asarray(contributions(recommender.llm, recommender.llm_params, recommender.soft, prompts, known)[0])
    width = prompts.items.shape[1] - candidates.shape[1]
    found = []
    for row, slot in enumerate(prompts.slot):
        tokens = []
        for place in np.flatnonzero(slot == USER_SLOT):
            tokens.append(SoftToken("user", 0, float(values[row, place])))
        for place in np.flatnonzero(slot == ITEM_SLOT):
            column = int(prompts.slot_index[row, place])
            kind = "history" if column < width else "candidate"
            tokens.append(SoftToken(kind, int(prompts.items[row, column]), float(values[row, place])))
        found.append(tokens)
    return found


def attribute_users(
    dataset: Dataset, stage2: Path, rows: Sequence[tuple[int, int, Sequence[int]]], *, llm: str | None = None
) -> list[list[SoftToken]]:
    """:func:`attribute` for users of a data set, by the system of a stage-2 run; what it was built on lies beside it.

    Args:
        dataset: of the run.
        stage2: its directory.
        rows: user, target and candidates of each.
        llm: where the language model is now; by default where it was in training.

    Raises:
        UserError: a run or the language model is not there, or its prompts hold no soft tokens.
    """
    users, targets, candidates = (np.asarray(part, np.int32) for part in zip(*rows, strict=True))
    asked = Candidates(users, targets, candidates, "test", 0, "overall")
    sources = Sources(dataset, [stage2], EvaluationSettings(llm=llm))
    questions = Questions(dataset, asked)
    vectors = user_vectors(sources.cf, questions)
    return attribute(sources.recommender, questions.histories, candidates, targets, vectors)
