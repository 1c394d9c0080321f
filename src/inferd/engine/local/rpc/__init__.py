"""Models computed on several hosts: the addresses of the workers, and the process of a worker."""
