"""Ray: connect to a cluster, and do tasks on its actors."""
