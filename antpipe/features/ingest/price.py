"""Prices as shops write them: a positive amount and its currency, or nothing."""

import math
import re

# Amounts outside are mistakes of the page (and would not survive float32); 0.01 is one cent.
SMALLEST, LARGEST = 0.01, 1e9
# A price is short; a style sheet or script that a crawler took for one is not.
LONGEST_TEXT = 60

SYMBOLS = {"US$": "USD", "CA$": "CAD", "CDN$": "CAD", "A$": "AUD", "$": "USD", "£": "GBP", "€": "EUR", "₹": "INR"}
CODES = ("USD", "EUR", "GBP", "CAD", "AUD", "CHF", "INR", "JPY")

_MARK = "|".join(re.escape(mark) for mark in (*SYMBOLS, *CODES))
_AMOUNT = re.compile(rf"({_MARK})?\s*([0-9][0-9.,'\s]*?)\s*({_MARK})?", re.IGNORECASE)
_RANGE = re.compile(r"\s*[-\u2013\u2014]\s*|\s+to\s+", re.IGNORECASE)
_FROM = re.compile(r"\Afrom:?\s+", re.IGNORECASE)
_POINT = re.compile(r"([0-9]+|[0-9]{1,3}(?:[,'\s][0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})(?:\.([0-9]{1,2}))?")
_NO_CENTS = re.compile(r"(?<=[0-9])[.,]\s?[-\u2013\u2014]+(?=\s|[^0-9\s]|\Z)")  # 12.- and 12,–
# A comma is a decimal sign only if it cannot separate thousands; "1.250" alone could be either number.
_COMMA = re.compile(r"([0-9]+|[0-9]{1,3}(?:[.'\s][0-9]{3})+),([0-9]{1,2})|([0-9]{1,3}(?:\.[0-9]{3}){2,})")
_DECIMAL = re.compile(r"[0-9]+\.[0-9]+")


def parse_price(value: object) -> tuple[float, str | None] | None:
    """The amount and its currency (ISO 4217 code; None if none is written), or None if it is not a price.

    Reads numbers, "$1,250.00", "1.250,00 €", "₹1,20,000", "12.-", "EUR 12.99", "from 12.99" and ranges: "$12.99 -
    $45.00" gives the geometric mean, the middle on the logarithmic scale on which prices are binned. Not prices:
    anything else, zero and below, values that are not finite, a range over two currencies, and what could be two
    numbers ("$1.250"). "$" alone means US dollars.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (float(value), None) if SMALLEST <= value <= LARGEST else None
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return None
    text = _NO_CENTS.sub("", _FROM.sub("", value.strip(), count=1))
    amounts = [_parse_amount(part) for part in _RANGE.split(text)]
    found = [amount for amount in amounts if amount is not None]
    currencies = {currency for _, currency in found if currency is not None}
    if len(found) < len(amounts) or len(found) > 2 or len(currencies) > 1:
        return None
    price = found[0][0] if len(found) == 1 else math.sqrt(found[0][0] * found[1][0])
    return price, next(iter(currencies), None)


def is_unread(value: object) -> bool:
    """Whether a text with digits is not read as a price, and is not an amount of zero or below."""
    if not isinstance(value, str) or not any(map(str.isdigit, value)) or parse_price(value) is not None:
        return False
    try:
        return float(value) > 0
    except ValueError:
        return True


def _parse_amount(text: str) -> tuple[float, str | None] | None:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        return None
    marks = {_currency(mark) for mark in (match[1], match[3]) if mark}
    amount = _parse_number(match[2], bare=not marks)
    if amount is None or len(marks) > 1 or not SMALLEST <= amount <= LARGEST:
        return None
    return amount, next(iter(marks), None)


def _currency(mark: str) -> str:
    return SYMBOLS.get(mark.upper(), mark.upper())


def _parse_number(text: str, bare: bool) -> float | None:
    """bare: there is no currency beside it, so any number of decimals after a point is a plain decimal number."""
    if bare and _DECIMAL.fullmatch(text):
        return float(text)
    if match := _POINT.fullmatch(text):
        whole, decimals = match[1], match[2] or "0"
    elif match := _COMMA.fullmatch(text):
        whole, decimals = match[1] or match[3], match[2] or "0"
    else:
        return None
    return float(f"{re.sub('[^0-9]', '', whole)}.{decimals}")
