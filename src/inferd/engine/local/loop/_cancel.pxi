# Cancels a preparation. Part of _llama.pyx.

cdef extern from "native/guards/cancel.h" namespace "inferd" nogil:
    cdef cppclass CancelFlag:
        void cancel()
    void attach_cancel_flag(CancelFlag* flag)
    cbool is_cancelled()


def stop_if_cancelled():
    """Raises ``InvalidRequest`` if this thread's preparation is cancelled."""
    if is_cancelled():
        raise InvalidRequest("its client has left")


cdef class Cancellation:
    """``with cancellation: …`` surrounds a preparation; ``cancel`` from another thread makes it raise soon.

    It raises ``InvalidRequest`` like any other refusal, although the client has gone.
    """

    cdef CancelFlag flag

    def cancel(self):
        with nogil:
            self.flag.cancel()

    def __enter__(self):
        attach_cancel_flag(&self.flag)

    def __exit__(self, *_):
        attach_cancel_flag(NULL)
