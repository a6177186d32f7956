"""Experts that judge pixels by fine features: what a model learns from a few strokes."""

from __future__ import annotations

from napari_crfasrnn.experts.features import FeatureMaps
from napari_crfasrnn.experts.forest import Forest
from napari_crfasrnn.experts.heads import Head
from napari_crfasrnn.experts.memory import Memory
from napari_crfasrnn.experts.panel import REST, Look, Panel, Sieve
from napari_crfasrnn.experts.perceptrons import Perceptrons

__all__ = ["REST", "FeatureMaps", "Forest", "Head", "Look", "Memory", "Panel", "Perceptrons", "Sieve"]
