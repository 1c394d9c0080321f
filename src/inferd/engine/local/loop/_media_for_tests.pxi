# Keeps a projector busy, for tests. Part of _llama.pyx.


cdef class BusyProjector:
    """While ``with BusyProjector(projector): …`` runs, all other items wait for the encoder."""

    cdef Projector projector

    def __cinit__(self, Projector projector):
        self.projector = projector

    def __enter__(self):
        with nogil:
            self.projector.projector.get().encoding().lock()

    def __exit__(self, *_):
        self.projector.projector.get().encoding().unlock()
