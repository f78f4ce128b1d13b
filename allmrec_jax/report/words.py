"""What the pages call things: systems, scenarios, stages and curves in words, numbers and differences as text."""

from collections.abc import Sequence
from typing import Any

ABOUT = {
    "Oracle": "the generator’s own probabilities: the best that is possible",
    "Popularity": "training interactions of the item",
    "NCF": "collaborative filtering by user and item index",
    "NextItNet": "collaborative filtering, convolutions over the history",
    "GRU4Rec": "collaborative filtering, a recurrent network",
    "SASRec": "collaborative filtering, the frozen model inside A-LLMRec",
    "MoRec": "SASRec over fine-tuned text vectors instead of item numbers",
    "CTRL": "SASRec aligned with a text encoder, answers without it",
    "RECFORMER": "a language model over key-value item texts",
    "RECFORMER (tiny)": "a small language model over key-value item texts, from scratch",
    "LLM-Only": "the frozen language model, titles only",
    "TALLRec (yes-no)": "LoRA on the language model, asked about one item at a time",
    "TALLRec (titles)": "LoRA on the language model, answers with a title",
    "MLP-LLM": "language model with the CF model’s own vectors, no stage 1",
    "A-LLMRec": "language model with aligned user and item vectors",
    "A-LLMRec (SBERT)": "the same, item vectors from text alone",
    "A-LLMRec_all": "trained on every position of the histories",
    "A-LLMRec, reduced": "trained as briefly as the rows beside it",
    "A-LLMRec (SASRec)": "on SASRec, trained like its neighbours",
    "A-LLMRec (NCF)": "on NCF in SASRec’s place",
    "A-LLMRec (NextItNet)": "on NextItNet in SASRec’s place",
    "A-LLMRec (GRU4Rec)": "on GRU4Rec in SASRec’s place",
    "Majority genre": "the genre that training has most often, for everybody",
    "3 most frequent genres": "the three that training has most often, for everybody",
    "A-LLMRec, items permuted": "control: item vectors swapped across items",
    "A-LLMRec, users swapped": "control: user vectors swapped across users",
    "w/o L_matching": "stage 1 without the loss that joins both spaces",
    "w/o L_item-recon and L_text-recon": "stage 1 without both reconstructions",
    "w/o L_rec": "stage 1 without the recommendation loss",
    "frozen SBERT": "the sentence encoder is not trained",
    "w/o user representation": "prompts without the user’s vector",
    "w/o joint embedding": "prompts without item vectors",
    "random joint embedding": "noise in place of item vectors",
}
"""What each system is, in a few words, under its name."""

CONTROLS = ("A-LLMRec, items permuted", "A-LLMRec, users swapped")
"""Rows that show what A-LLMRec is worth without its vectors."""

SCENARIOS = {
    "overall": "all test users",
    "cold users": "users with three interactions",
    "few-shot": "few training users",
    "cross-domain": "users of another data set",
}

CURVES = {
    "match": "matching loss",
    "item_recon": "item reconstruction loss",
    "text_recon": "text reconstruction loss",
    "rec": "recommendation loss",
    "exact": "share of answers predicted exactly",
}
"""What logged metrics are called on the page, where their own name says too little."""

TRAINED = {"cf": "CF", "stage1": "stage 1", "stage2": "stage 2"}
"""Kinds of training in running text; the others go by their own name."""

STAGES = {
    "cf": "Collaborative filtering",
    "stage1": "Stage 1: alignment",
    "stage2": "Stage 2: projection into the language model",
    "mlp-llm": "MLP-LLM",
    "tallrec-yes-no": "TALLRec (yes-no)",
    "tallrec-titles": "TALLRec (titles)",
    "morec": "MoRec",
    "ctrl": "CTRL",
    "recformer": "RECFORMER",
    "recformer-tiny": "RECFORMER (tiny)",
}


def tone(system: str) -> str:
    """The colour of a system in tables and bars: the product's own, the CF model inside it, or another's."""
    if system.startswith("A-LLMRec") and system not in CONTROLS:
        return "ours"
    return "cf" if system == "SASRec" else "other"


def line_tone(system: str, number: int = 0) -> str:
    """A colour for a line, each system's own where it is one of the few."""
    fixed = {"A-LLMRec": "ours", "SASRec": "cf", "A-LLMRec (SBERT)": "c3"}
    return fixed.get(system, ("c4", "c5", "c6", "other")[number % 4])


def side_tone(interval: Sequence[float]) -> str:
    """The colour of a difference: by the side of zero on which its interval lies."""
    return "ours" if interval[1] > 0 else "cf" if interval[2] < 0 else "other"


def number(value: float) -> str:
    """A value with the tables' three digits."""
    return f"{value:.3f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def percent(value: float) -> str:
    """A share in per cent, from the tables' three digits."""
    return f"{100 * round(value, 3):.1f}%"


def share(interval: Sequence[float]) -> str:
    """``[value, low, high]`` in per cent."""
    value, low, high = (100 * round(part, 3) for part in interval)  # the tables' three digits
    return f"{value:.1f}% ({low:.1f} to {high:.1f})"


def difference_in_words(pair: tuple[Sequence[float], float | None], metric: str) -> str:
    """A paired difference in words."""
    (value, low, high), p = pair
    test = "" if p is None else ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    return f"{signed(value)} {metric} ({signed(low)} to {signed(high)}{test}), {verdict((value, low, high))}"


def verdict(interval: Sequence[float]) -> str:
    """Whether a difference's interval ``[value, low, high]`` stays clear of zero."""
    _, low, high = interval
    if low > 0:
        return "higher, beyond chance"
    return "lower, beyond chance" if high < 0 else "within chance"


def plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
