"""What every runner is to those who start it and compile for it, whatever its model."""

from typing import Protocol

from jserve.batch import Weights
from jserve.runtime.program_table import ProgramTable
from jserve.runtime.shapes import EngineShape


class ModelRunner(Protocol):
    """Runs the steps of one model on its devices. How steps are dispatched is between it and its engine core."""

    shape: EngineShape
    table: ProgramTable

    def start(self, weights: Weights, small_batch: Weights = ()) -> None:
        """Take the weights and allocate everything else; needs the required programs."""
        ...
