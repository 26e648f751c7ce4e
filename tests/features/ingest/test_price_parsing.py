"""Prices as shops write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.features.ingest.price import LARGEST, SMALLEST, Price, PriceColumn, parse_price


@pytest.mark.parametrize(
    ("written", "amount", "currency"),
    [
        ("$1,250.00", 1250.0, "USD"),
        (" $25.00\n", 25.0, "USD"),
        ("$1,234,567.89", 1234567.89, "USD"),
        ("US$ 5", 5.0, "USD"),
        ("CDN$ 12.50", 12.5, "CAD"),
        ("£9.99", 9.99, "GBP"),
        ("₹1,250", 1250.0, "INR"),
        ("1.250,00 €", 1250.0, "EUR"),
        ("12,99 €", 12.99, "EUR"),
        ("1.250.000 €", 1250000.0, "EUR"),
        ("1 250,50 EUR", 1250.5, "EUR"),
        ("CHF 1'250.00", 1250.0, "CHF"),
        ("eur 12.99", 12.99, "EUR"),
        ("US$12.00 USD", 12.0, "USD"),
        ("12.99", 12.99, None),
        ("19.125", 19.125, None),
        ("from 14.99", 14.99, None),
        ("From: $14.99", 14.99, "USD"),
        (14.95, 14.95, None),
        (7, 7.0, None),
        ("1.299,-", 1299.0, None),
        ("1.299,- €", 1299.0, "EUR"),
        ("1.299.-", 1299.0, None),
        ({"price": 3}, 3.0, None),
        ({"amount": 12.5, "currency": "EUR"}, 12.5, "EUR"),
        ({"value": "1,250.00", "currencyCode": "chf"}, 1250.0, "CHF"),
        (["12,99 €"], 12.99, "EUR"),
        ([{"price": {"amount": 2, "currency": "USD"}}], 2.0, "USD"),
    ],
)
def test_a_price_is_read_with_its_currency(written: object, amount: float, currency: str | None) -> None:
    assert parse_price(written) == (pytest.approx(amount), currency)


@pytest.mark.parametrize(
    ("written", "low", "high", "currency"),
    [
        ("$12.99 - $45.00", 12.99, 45.0, "USD"),
        ("$12.99-$45.00", 12.99, 45.0, "USD"),
        ("12,99 – 45,00 €", 12.99, 45.0, "EUR"),
        ("from $5 to $20", 5.0, 20.0, "USD"),
    ],
)
def test_a_range_is_its_geometric_mean(written: str, low: float, high: float, currency: str) -> None:
    assert parse_price(written) == (pytest.approx(math.sqrt(low * high)), currency)


@pytest.mark.parametrize(
    "written",
    [
        None,
        "",
        "   ",
        "Too low to display",
        "None",
        "—",
        "$",
        "$.",
        "free",
        "$12.99 - ",
        "- $12.99",
        "$1 - $2 - $3",
        "$0.00",
        "$0.00 - $5.00",
        0,
        -3,
        -0.5,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        1e300,
        True,
        [],
        {"cost": 3},
        [3, 4],
        {"amount": "5 EUR", "currency": "USD"},
        "nan",
        "inf",
        "1e5",
        "$1,2,3",
        "$12.99,5",
        "12 apples",
        "$5 - €6",
        "USD 5 EUR",
        "٣",
        ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{background-color:#fffbf3}",
        "\n\n\n<script",
        '<div class="a-section a-spacing-none"',
    ],
)
def test_a_text_that_is_not_a_price_is_missing(written: object) -> None:
    assert parse_price(written) is None


def test_a_point_before_three_digits_is_ambiguous_beside_a_currency() -> None:
    assert parse_price("$1.250") is None
    assert parse_price("1.250 €") is None


def column(*values: object) -> list[Price | None]:
    """The prices of a column."""
    prices = PriceColumn()
    for row, value in enumerate(values):
        prices.see(row, value)
    settled = prices.settled()
    return [settled.get(row, parse_price(value)) for row, value in enumerate(values)]


@pytest.mark.parametrize("shows", ["12,99", "1.250,00 €", "12,-", "1.000.000", "0,125"])
def test_a_decimal_comma_in_the_column_makes_points_separate_thousands(shows: str) -> None:
    assert column(shows, "1.299", "1.299 €")[1:] == [(1299.0, None), (1299.0, "EUR")]


@pytest.mark.parametrize("shows", ["12.99", "$1,250.00", "1,000,000", "0.125"])
def test_a_decimal_point_in_the_column_makes_commas_separate_thousands(shows: str) -> None:
    assert column("1,299", "$1.250", shows)[:2] == [(1299.0, None), (1.25, "USD")]


@pytest.mark.parametrize("shows", [(), ("12,99", "12.99"), ("12",), ("about 12,99",)])
def test_a_column_that_shows_no_sign_or_both_decides_nothing(shows: tuple[str, ...]) -> None:
    assert column("1.299", "$1.250", "1,299", *shows)[:3] == [(1.299, None), None, (1299.0, None)]


@given(st.text("0123456789.,-$€ '", max_size=25), st.sampled_from([",", "."]))
def test_a_known_sign_gives_a_positive_finite_price_or_none(text: str, sign: str) -> None:
    price = parse_price(text, sign)
    assert price is None or SMALLEST <= price[0] <= LARGEST


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans(), st.lists(st.text())))
def test_anything_gives_a_positive_finite_price_or_none(value: object) -> None:
    price = parse_price(value)
    assert price is None or SMALLEST <= price[0] <= LARGEST


@given(st.text("0123456789.,-$€£ 'toUSDEUR", max_size=25))
def test_text_that_looks_like_a_price_gives_a_positive_finite_price_or_none(text: str) -> None:
    price = parse_price(text)
    assert price is None or SMALLEST <= price[0] <= LARGEST


@given(st.integers(1, 10**9), st.sampled_from(["$", "£", "€"]))
def test_formatted_cents_come_back(cents: int, symbol: str) -> None:
    price = parse_price(f"{symbol}{cents / 100:,.2f}")
    assert price is not None
    assert price[0] == pytest.approx(cents / 100)
