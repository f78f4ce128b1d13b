"""What the pages call things: systems, scenarios, stages and curves in words, numbers and differences as text."""

from collections.abc import Sequence
from typing import Any

from allmrec_jax.report.figures import Tone

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


def systems_in_words() -> dict[str, str]:
    """What each system is, in a few words, by its name: as its record says it."""
    from allmrec_jax.evaluation.systems import SYSTEMS

    return {name: system.about for name, system in SYSTEMS.items()} | {
        "Majority genre": "the genre that training has most often, for everybody",
        "3 most frequent genres": "the three that training has most often, for everybody",
    }


def tone(system: str) -> Tone:
    """The colour of a system in tables and bars: the product's own, the CF model inside it, or another's."""
    if system.startswith("A-LLMRec") and system not in CONTROLS:
        return "ours"
    return "cf" if system == "SASRec" else "other"


def line_tone(system: str, number: int = 0) -> Tone:
    """A colour for a line, each system's own where it is one of the few."""
    fixed: dict[str, Tone] = {"A-LLMRec": "ours", "SASRec": "cf", "A-LLMRec (SBERT)": "c3"}
    rest: tuple[Tone, ...] = ("c4", "c5", "c6", "other")
    return fixed.get(system, rest[number % len(rest)])


def side_tone(interval: Sequence[float]) -> Tone:
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
