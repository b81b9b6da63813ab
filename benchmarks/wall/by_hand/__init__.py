"""Tiny models of classes whose config alone does not make one: what a person has chosen, and nothing of the engine."""

from benchmarks.wall.by_hand import pictured, pictures, texts, towers
from benchmarks.wall.by_hand.made import Made

MADE = {**texts.MADE, **pictured.MADE, **pictures.MADE, **towers.MADE}
"""By kind of config."""

__all__ = ["MADE", "Made"]
