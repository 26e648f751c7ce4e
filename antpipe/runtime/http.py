"""Headers of HTTP answers."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(value: str, now: datetime) -> float | None:
    """The seconds that a Retry-After header (RFC 9110, 10.2.3) asks to wait; None unless it is a number or a date."""
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,18}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # OverflowError: numbers of twenty digits
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())
