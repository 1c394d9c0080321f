# Cancels a preparation. Part of _llama.pyx.

cdef extern from "native/guards/cancel.h" namespace "inferd" nogil:
    cdef cppclass CancelFlag:
        void cancel()
    void attach_cancel_flag(CancelFlag* flag)
    cbool is_cancelled()


def stop_if_cancelled():
    """Raises ``InvalidRequest`` if the request that this thread prepares is cancelled."""
    if is_cancelled():
        raise InvalidRequest("its client has left")


cdef class Cancellation:
    """``with cancellation: …`` surrounds the preparation of a request. If another thread calls ``cancel``, the
    preparation soon raises an error.

    The error is ``InvalidRequest``, as for any other refusal, although the client has gone.
    """

    cdef CancelFlag flag

    def cancel(self):
        # Keeps the GIL: releasing it and getting it back may take longer than the cancel itself.
        self.flag.cancel()

    def __enter__(self):
        attach_cancel_flag(&self.flag)

    def __exit__(self, *_):
        attach_cancel_flag(NULL)
