"""The flags of commands that train models on a cluster of Ray. Imports nothing heavy."""

from dataclasses import dataclass

from lugpi_core.errors import InputError
from lugpi_core.fields import check_fields


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Whether models are trained on a cluster of Ray, a model a task.

    Raises:
        InputError: a value of another type, more than one GPU for a model, or a share of GPUs without a cluster.
    """

    ray: str | None = None
    """Train on a cluster of Ray (pip install 'lugpi[ray]'): HOST:PORT of its head; auto = that of RAY_ADDRESS, or the one that runs on this
    machine, or else one that is started for this command; local = always the last. Every node must see the run folder."""
    gpus_per_model: float | None = None
    """GPUs of each model on Ray, such as 0.25 for four at a time on one; Ray limits no memory (default: 1 if the cluster has any, else
    0)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.gpus_per_model is None:
            return
        if not 0 <= self.gpus_per_model <= 1:
            raise InputError(got=f"--gpus-per-model {self.gpus_per_model:g}", expected="0 to 1", do="give for instance 0.25")
        if self.ray is None:
            raise InputError(got="--gpus-per-model without --ray", expected="both, or neither", do="add --ray auto, or leave it out")
