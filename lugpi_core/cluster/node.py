"""The class of the actors, which Ray sends to a node by value: so a node without lugpi, or with another, can say that."""

from typing import Any


def actor_class() -> type:
    """Return a class that is pickled with its code, because it belongs to no module; it imports nothing before its methods run."""

    class TaskActor:
        def node(self) -> str:
            """Return Ray's id of the node."""
            import ray

            return str(ray.get_runtime_context().get_node_id())

        def start(self, root: str, setup: bytes, inputs: bytes) -> Any:
            """Load what the tasks need; return a ``Reply``, or, without the driver's lugpi, host, node and what is missing.

            Args:
                root: the folder of the driver's lugpi, where this node may find it too.
                setup, inputs: pickles for the worker.
            """
            import platform
            import sys

            import ray

            try:
                try:
                    from lugpi_core.cluster.actor import Worker
                except ImportError:
                    sys.path.append(root)
                    from lugpi_core.cluster.actor import Worker
            except ImportError as error:
                return platform.node(), ray.get_runtime_context().get_node_id(), str(error)
            self._worker = Worker()
            return self._worker.start(setup, inputs)

        def do(self, task: Any) -> Any:
            """Do a task; return a ``Reply``."""
            return self._worker.do(task)

    return TaskActor
