"""What a model takes of a node of Ray."""

import torch

from lugpi_core.cluster.connection import Cluster, Share, share_of
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import DeviceChoice
from train.options.ray import RaySettings


def share_of_model(cluster: Cluster, settings: RaySettings, device: DeviceChoice, most: int | None) -> Share:
    """Return what each model takes of a node.

    Raises:
        InputError: GPUs for models on the CPU; or the models get GPUs, and this process, which plans them, sees none.
    """
    gpus = settings.gpus_per_model
    if device == "cpu" and gpus:
        raise InputError(got=f"--gpus-per-model {gpus:g} with --device cpu", expected="one of them", do="leave one out")
    if gpus is None:
        gpus = 0.0 if device == "cpu" else float(device == "cuda" or cluster.gpus > 0)
    if gpus and not torch.cuda.is_available():
        raise InputError(
            got="no GPU for the command, which plans the models of a cluster with GPUs",
            expected="one: it decides the precision",
            do="run it on a node that has one (ray job submit --entrypoint-num-gpus 0.01), or give --device cpu",
        )
    return share_of(cluster, gpus=gpus, actors=most)
