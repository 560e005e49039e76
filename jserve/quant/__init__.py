"""Weights in 8 and 4 bits: one file per format, one layout in memory (`weight.py`).

A format says which modules it covers and how their arrays are read (`scheme.py`). Nothing here knows of layers
or of a model: `layers/quantized.py` puts quantized weights where a model has float ones.
"""

from jserve.quant.detect import detect
from jserve.quant.experts import OfExperts, abstract_experts, expert_shardings
from jserve.quant.on_load import OnLoad
from jserve.quant.scheme import Parts, Quantization, Scheme
from jserve.quant.weight import Layout, QuantizedWeight, abstract_weight, fit_devices, shardings

__all__ = [
    "Layout",
    "OfExperts",
    "OnLoad",
    "Parts",
    "Quantization",
    "QuantizedWeight",
    "Scheme",
    "abstract_experts",
    "abstract_weight",
    "detect",
    "expert_shardings",
    "fit_devices",
    "shardings",
]
