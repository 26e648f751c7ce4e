"""Prices as shops write them: a positive amount and its currency, or nothing."""

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal

# Amounts outside are mistakes of the page (and would not survive float32); 0.01 is one cent.
SMALLEST, LARGEST = 0.01, 1e9
# A price is short; a style sheet or script that a crawler took for one is not.
LONGEST_TEXT = 60

SYMBOLS = {"US$": "USD", "CA$": "CAD", "CDN$": "CAD", "A$": "AUD", "$": "USD", "£": "GBP", "€": "EUR", "₹": "INR"}
CODES = ("USD", "EUR", "GBP", "CAD", "AUD", "CHF", "INR", "JPY")

_MARK = "|".join(re.escape(mark) for mark in (*SYMBOLS, *CODES))
_WHOLE = "\ue000"  # stands for the - of a price without cents
_AMOUNT = re.compile(rf"({_MARK})?\s*([0-9][0-9.,'\s]*?{_WHOLE}?)\s*({_MARK})?", re.IGNORECASE)
_RANGE = re.compile(r"\s*[-\u2013\u2014]\s*|\s+to\s+", re.IGNORECASE)
_FROM = re.compile(r"\Afrom:?\s+", re.IGNORECASE)
_POINT = re.compile(r"([0-9]+|[0-9]{1,3}(?:[,'\s][0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})(?:\.([0-9]{1,2}))?")
_NO_CENTS = re.compile(r"(?<=[0-9])([.,])\s?[-\u2013\u2014]+(?=\s|[^0-9\s]|\Z)")  # 12.- and 12,–
# A comma is a decimal sign only if it cannot separate thousands; "1.250" alone could be either number.
_COMMA = re.compile(r"([0-9]+|[0-9]{1,3}(?:[.'\s][0-9]{3})+),([0-9]{1,2})|([0-9]{1,3}(?:\.[0-9]{3}){2,})")
_DECIMAL = re.compile(r"[0-9]+\.[0-9]+")
# What an amount is if another price of the column shows the decimal sign.
_BY_SIGN = {
    ",": re.compile(r"([0-9]+|[0-9]{1,3}(?:[.'\s][0-9]{3})+)(?:,([0-9]{1,3}))?"),
    ".": re.compile(r"([0-9]+|[0-9]{1,3}(?:[,'\s][0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})(?:\.([0-9]{1,3}))?"),
}
_WITHOUT_CENTS = re.compile(r"[0-9]+|[0-9]{1,3}(?:[.,'\s][0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}")
# One sign before three digits could separate thousands, or decimals.
_EITHER = re.compile(r"[1-9][0-9]{0,2}[.,][0-9]{3}")
_SHOWS = {
    ",": re.compile(r".*,[0-9]{1,2}|0,[0-9]+|[0-9]{1,3}(?:\.[0-9]{3}){2,}|.*\.[0-9]{3},[0-9]+"),
    ".": re.compile(r".*\.[0-9]{1,2}|[0-9]+\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3}){2,}|.*,[0-9]{3}\.[0-9]+"),
}
# Fields of a record that holds a price, the best first.
AMOUNTS, CURRENCIES = ("amount", "value", "price"), ("currency", "currencyCode", "currency_code", "priceCurrency")
DEEPEST = 5


Price = tuple[float, str | None]


@dataclass
class PriceColumn:
    """What the prices of a column show together: the decimal sign, and how many are not read.

    open: the row and value of prices whose sign could be either. unread: values, each of which gives no price.
    """

    signs: set[str] = field(default_factory=set)
    open: list[tuple[int, object]] = field(default_factory=list)
    unread: list[object] = field(default_factory=list)

    def see(self, row: int, value: object) -> None:
        """Note a value. row: its number."""
        signs = decimal_signs(value)
        self.signs |= signs
        text = _unpacked(value)[0]
        if isinstance(text, str) and not signs and ("." in text or "," in text):
            self.open.append((row, value))
        elif is_unread(value):
            self.unread.append(value)

    def settled(self) -> dict[int, Price | None]:
        """The prices, by row, that another price of the column decides. Call it when all values were seen."""
        sign = next(iter(self.signs)) if len(self.signs) == 1 else None
        self.unread += [value for _, value in self.open if is_unread(value, sign)]
        return {row: parse_price(value, sign) for row, value in self.open} if sign else {}


def parse_price(value: object, sign: str | None = None) -> Price | None:
    """The amount and its currency (ISO 4217 code; None if none is written), or None if it is not a price.

    Reads numbers, "$1,250.00", "1.250,00 €", "₹1,20,000", "12.-", "EUR 12.99", "from 12.99" and ranges: "$12.99 -
    $45.00" gives the geometric mean, the middle on the logarithmic scale on which prices are binned. Not prices:
    anything else, zero and below, values that are not finite, a range over two currencies, and what could be two
    numbers ("$1.250"). "$" alone means US dollars. A record of an amount and a currency is read, and a list of one
    price. sign: the one before decimals, if other prices of the column show it.
    """
    value, named = _unpacked(value)
    price = _parse_value(value, sign)
    if price is None or named is None:
        return price
    return (price[0], named) if price[1] in (None, named) else None


def decimal_signs(value: object) -> set[str]:
    """The signs before decimals, comma or point, that a price shows. Empty if each could be thousands, or is not
    there."""
    value, _ = _unpacked(value)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or parse_price(value) is None:
        return set()
    amounts = [match[2] for part in _parts(value) if (match := _AMOUNT.fullmatch(part))]
    plain = [amount for amount in amounts if not _EITHER.fullmatch(amount)]
    shown = {sign for sign, shows in _SHOWS.items() for amount in plain if shows.fullmatch(amount)}
    return shown | {match[1] for match in _NO_CENTS.finditer(value) if match[1] == ","}  # 12.- is written with , too


def _unpacked(value: object) -> tuple[object, str | None]:
    """The amount and the currency of a record, or of a list of one; other values are returned without a currency."""
    currency = None
    for _ in range(DEEPEST):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        elif isinstance(value, dict) and (key := next((key for key in AMOUNTS if key in value), None)):
            code = next((value[name] for name in CURRENCIES if isinstance(value.get(name), str)), "").strip().upper()
            code = SYMBOLS.get(code, code)
            currency = code if re.fullmatch("[A-Z]{3}", code) else currency
            value = value[key]
        else:
            break
    return float(value) if isinstance(value, Decimal) else value, currency


def _parse_value(value: object, sign: str | None) -> Price | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (float(value), None) if SMALLEST <= value <= LARGEST else None
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return None
    amounts = [_parse_amount(part, sign) for part in _parts(value)]
    found = [amount for amount in amounts if amount is not None]
    currencies = {currency for _, currency in found if currency is not None}
    if len(found) < len(amounts) or len(found) > 2 or len(currencies) > 1:
        return None
    price = found[0][0] if len(found) == 1 else math.sqrt(found[0][0] * found[1][0])
    return price, next(iter(currencies), None)


def is_unread(value: object, sign: str | None = None) -> bool:
    """Whether a value is there but not read as a price. A text without digits and an amount of zero or below say that
    there is no price."""
    if parse_price(value, sign) is not None:
        return False
    value, _ = _unpacked(value)
    if value is None or value in ([], {}) or (isinstance(value, str) and not any(map(str.isdigit, value))):
        return False
    try:
        return not isinstance(value, str | int | float) or float(value) > 0
    except ValueError:
        return True
    except OverflowError:
        return isinstance(value, int) and value > 0


def _parts(text: str) -> list[str]:
    """The amounts of a range, or the only one. A sign for no cents becomes a mark."""
    return _RANGE.split(_NO_CENTS.sub(_WHOLE, _FROM.sub("", text.strip(), count=1)))


def _parse_amount(text: str, sign: str | None) -> Price | None:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        return None
    marks = {_currency(mark) for mark in (match[1], match[3]) if mark}
    amount = _parse_number(match[2], bare=not marks, sign=sign)
    if amount is None or len(marks) > 1 or not SMALLEST <= amount <= LARGEST:
        return None
    return amount, next(iter(marks), None)


def _currency(mark: str) -> str:
    return SYMBOLS.get(mark.upper(), mark.upper())


def _parse_number(text: str, bare: bool, sign: str | None) -> float | None:
    """bare: there is no currency beside it, so any number of decimals after a point is a plain decimal number. sign:
    the one before decimals, if it is known."""
    if text.endswith(_WHOLE):
        text = text[:-1].rstrip()
        return float(re.sub("[^0-9]", "", text)) if _WITHOUT_CENTS.fullmatch(text) else None
    if sign and (match := _BY_SIGN[sign].fullmatch(text)):
        return float(f"{re.sub('[^0-9]', '', match[1])}.{match[2] or '0'}")
    if bare and _DECIMAL.fullmatch(text):
        return float(text)
    if match := _POINT.fullmatch(text):
        whole, decimals = match[1], match[2] or "0"
    elif match := _COMMA.fullmatch(text):
        whole, decimals = match[1] or match[3], match[2] or "0"
    else:
        return None
    return float(f"{re.sub('[^0-9]', '', whole)}.{decimals}")
