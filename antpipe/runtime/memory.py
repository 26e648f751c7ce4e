"""Errors that mean that memory has run out, whichever library says so."""

# Of RuntimeError, ImportError and OSError: torch, oneDNN, C++, the loader of shared libraries, Python's threads, Linux.
SAID = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",
    "failed to map segment from shared object",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, is for want of memory."""
    cause = error.__cause__ or error.__context__
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError | ImportError | OSError) and any(one in str(error) for one in SAID))
        or (cause is not None and is_out_of_memory(cause))
    )
