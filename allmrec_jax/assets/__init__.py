"""The small pretrained models that the package carries: ``opt-nano`` and ``sbert-nano``, a directory each."""

from pathlib import Path

ASSETS = Path(__file__).parent
