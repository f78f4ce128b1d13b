"""Our side of each component."""

import functools
from collections.abc import Callable

from allmrec_jax.parity import ours_forward as forward
from allmrec_jax.parity import ours_training as training
from allmrec_jax.parity.reference import Drawn, Outputs, Steps

OURS: dict[str, Callable[[Outputs], Outputs]] = {
    "Presets": forward.presets,
    "SASRec": forward.sasrec,
    "Autoencoders": forward.autoencoders,
    "Sentence encoder": forward.sentence_encoder,
    "Sentence encoder, BERT": functools.partial(forward.sentence_encoder, bert=True),
    "Stage 1": forward.stage1_step,
    "Prompts": forward.prompt_tokens,
    "Projectors": forward.projectors,
    "OPT, right-padded": forward.opt_layers,
    "OPT, left-padded": forward.opt_layers,
    "OPT-350m's shape": functools.partial(forward.opt_layers, shape_350m=True),
    "Stage 2": forward.stage2_step,
    "Generation": forward.generation,
    "Generation, official settings": forward.official_generation,
    "Hit@1 of eval.py": forward.hits,
    "Conversion": forward.converted,
}
"""Our outputs of each component, from those of the reference."""

DRAWING: dict[str, Callable[[Steps], tuple[Outputs, Drawn]]] = {
    "SASRec with dropout": lambda steps: forward.sasrec_with_dropout(),
    "SASRec training": training.sasrec_training,
    "SASRec training, short histories": training.short_histories,
    "Stage 1 training": training.stage1_training,
    "Stage 2 training": training.stage2_training,
}
"""Our outputs of the components in which the product draws, and its draws."""
