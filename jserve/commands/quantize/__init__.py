"""`jserve quantize`: a model in floating point to weights in 4 or 8 bits that are learned from a text.

    1. `corpus.py` cuts the text; 2. `layers.py` runs one decoder layer after the other over it and collects, for each
    linear layer, the Gram matrix of its inputs; 3. `awq.py` or `gptq.py` chooses the codes that change the
    layer's outputs least; 4. the layer runs once more with these, for the next one; 5. `folder.py` writes.

One layer is in memory at a time. The error of a linear layer over all tokens x, |x W - x W'|^2, is tr(D G D^T) for
D = W - W' and the Gram matrix G = sum of x x^T, so no activations are kept beyond the residual stream.
"""

from jserve.commands.quantize.run import Done, quantize

__all__ = ["Done", "quantize"]
