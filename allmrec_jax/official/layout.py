"""Where the official code keeps its files below its root (NAME is the data set, E1 and E2 the stages' epochs).

data/amazon/NAME.txt                             a line "user item" an interaction, both from 1, in order
data/amazon/NAME_text_name_dict.json.gz          a plain pickle: {"title": {item: …}, "description": {item: …}}
pre_train/sasrec/NAME/*.pth                      [{"user_num", "item_num", "args"}, state dict]
models/saved_models/NAME_sasrec_E1_*.pt          sbert, mlp, mlp2: state dicts
models/saved_models/NAME_sasrec_E1_opt_E2_*.pt   log_proj, item_proj: state dicts
"""

import dataclasses
from pathlib import Path

from allmrec_jax.fileio import plain_name
from allmrec_jax.outputs import Output

LATENT = 128
"""Width of the joint embeddings, fixed in the official code."""

STYLES = {
    "Movies_and_TV": "movies",
    "Video_Games": "games",
    "Luxury_Beauty": "goods",
    "Toys_and_Games": "goods",
}
"""The words of the official prompts by data set; it has none for others."""

OFFICIAL = Output("files for the official code", signs=())
"""What is written into the official code's folders."""

ENCODER_PREFIXES = ("0.auto_model.", "0.model.")
"""Before Hugging Face's names in ``sbert.pt``: of sentence-transformers up to 5 and since 6."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the files of one data set are, below the official code's root."""

    root: Path
    name: str
    stage1_epoch: int = 10
    stage2_epoch: int = 5

    def __post_init__(self) -> None:
        plain_name(self.name, "the data set's name")

    @property
    def sequences(self) -> Path:
        """The interactions."""
        return self.root / "data" / "amazon" / f"{self.name}.txt"

    @property
    def texts(self) -> Path:
        """Titles and descriptions."""
        return self.root / "data" / "amazon" / f"{self.name}_text_name_dict.json.gz"

    @property
    def cf_folder(self) -> Path:
        """Of the CF checkpoint; the official code wants exactly one in it."""
        return self.root / "pre_train" / "sasrec" / self.name

    def stage1(self, part: str) -> Path:
        """``sbert``, ``mlp`` or ``mlp2``."""
        return self.root / "models" / "saved_models" / f"{self.name}_sasrec_{self.stage1_epoch}_{part}.pt"

    def stage2(self, part: str) -> Path:
        """``log_proj`` or ``item_proj``."""
        name = f"{self.name}_sasrec_{self.stage1_epoch}_opt_{self.stage2_epoch}_{part}.pt"
        return self.root / "models" / "saved_models" / name
