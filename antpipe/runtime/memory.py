"""Errors that mean that memory has run out, whichever library raises them."""

# Of torch, oneDNN, C++, the loader of shared libraries, Python's threads, Linux.
SAID = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",
    "failed to map segment from shared object",
    "can't start new thread",
    "could not spawn threads",
)
MEANT = (RuntimeError, ImportError, OSError)


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust panicked; such an error is not an Exception."""
    return type(error).__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, is due to a lack of memory."""
    cause = error.__cause__ or error.__context__
    return (
        isinstance(error, MemoryError)
        or ((isinstance(error, MEANT) or is_panic(error)) and any(one in str(error) for one in SAID))
        or (cause is not None and is_out_of_memory(cause))
    )
