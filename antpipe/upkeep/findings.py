"""What `antpipe doctor` finds: how bad it is, and the command that repairs it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from antpipe.errors import AntpipeError, IntegrityError, UsageError
from antpipe.store.documents import NewerFormatError

# How bad it is. Only UNFIT (this machine or its libraries) and DAMAGED (files) are faults.
FINE, REMARK, UNFIT, DAMAGED = "fine", "remark", "unfit", "damaged"
ORDER = (FINE, REMARK, UNFIT, DAMAGED)


@dataclass(frozen=True)
class Finding:
    """What was checked, its severity (`fine`, `remark`, `unfit` or `damaged`), and the next command."""

    about: str
    severity: str
    message: str
    next_command: str = ""


def guarded(about: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of one check; an error that stops it is a finding too, so that the others continue.

    Raises UsageError: then the request is wrong, not what was checked.
    """
    try:
        yield from look()
    except UsageError:
        raise
    except NewerFormatError as error:
        yield Finding(about, UNFIT, error.message, str(error.next_command or ""))
    except AntpipeError as error:
        severity = DAMAGED if isinstance(error, IntegrityError) else UNFIT
        yield Finding(about, severity, error.message, str(error.next_command or ""))
    except ImportError as error:
        yield Finding(about, UNFIT, f"cannot be checked: {error}")
    except PermissionError as error:
        yield Finding(about, UNFIT, f"{error.filename}: cannot be read: {error.strerror}")
    except Exception as error:  # a damaged file makes each library raise errors of its own
        yield Finding(about, DAMAGED, f"cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def worst(findings: Sequence[Finding]) -> str:
    """The worst severity among them."""
    return max((one.severity for one in findings), key=ORDER.index, default=FINE)


def raise_worst(findings: Sequence[Finding]) -> None:
    """Raise IntegrityError if something is damaged, AntpipeError if the machine or a library is unfit."""
    severity = worst(findings)
    faults = [one for one in findings if one.severity == severity]
    if severity not in (UNFIT, DAMAGED):
        return
    message = f"{severity}: {', '.join(dict.fromkeys(one.about for one in faults))}; see above"
    mend = next((one.next_command for one in faults if one.next_command), None)
    raise (IntegrityError if severity == DAMAGED else AntpipeError)(message, mend)
