"""A model over several hosts: the addresses of its workers, and the process of a worker."""
