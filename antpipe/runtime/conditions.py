"""Conditions on the rows of a table, as `--where` takes them: a small part of SQL, turned into a polars expression.

Parsed here and never evaluated as code: only the columns of the table, literals, and the words below can occur.

    condition   A and B, A or B, not A, (A)
    comparison  = == != <> < <= > >=, in (1, 2), between 1 and 2, is null, like 'a%', contains 'a' (ignores case)
    values      a column, a number, 'text', true, false; lower(x), upper(x), length(x), abs(x), year(x)

Double quotes hold names with spaces or signs ("order date"); after an operator they may also hold text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from difflib import get_close_matches
from typing import Any, Literal

import polars as pl

from antpipe.errors import UsageError

LONGEST = 2000
DEEPEST = 40
TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w))|(?P<text>'(?:[^']|'')*')"""
    r"""|(?P<quoted>"(?:[^"]|"")*")|(?P<word>[^\W\d]\w*)|(?P<sign><=|>=|<>|!=|==|[=<>(),-]))"""
)
COMPARISONS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=")
KEYWORDS = frozenset(["and", "or", "not", "in", "between", "is", "null", "like", "contains", "true", "false"])
FUNCTIONS = {"lower": "text", "upper": "text", "length": "text", "abs": "number", "year": "time"}

Kind = Literal["number", "text", "time", "boolean", "texts", "nothing"]


@dataclass(frozen=True)
class _Token:
    """kind: number, text, quoted, word, sign or end. at: of its first character."""

    kind: str
    value: str
    at: int


@dataclass(frozen=True)
class _Value:
    """One side of a comparison. literal: its Python value if it is not made of a column. name: for messages."""

    kind: Kind
    expression: pl.Expr
    name: str
    literal: Any = None


def row_filter(expression: str, schema: Mapping[str, pl.DataType], *, parse_text: bool = False) -> pl.Expr:
    """The condition as a Boolean expression for `frame.filter(...)`; rows for which it is unknown (null) do not pass.

    schema: columns that may occur, with their types. Names match exactly, or ignoring case if only one does.
    parse_text: columns of text may be compared with numbers (files without types); a cell that is not one gives null.
    Raises UsageError for syntax, unknown columns and functions, and comparisons between different types.
    """
    return _Parser(expression, dict(schema), parse_text).whole()


def columns_named(expression: str, columns: list[str]) -> list[str]:
    """The columns that a condition reads, in the order of the table. Raises UsageError for unknown names and syntax."""
    parser = _Parser(expression, dict.fromkeys(columns, pl.String()), parse_text=True, any_type=True)
    parser.whole()
    return [name for name in columns if name in parser.read]


class _Parser:
    """Recursive descent over the tokens. any_type: only the names are checked."""

    def __init__(
        self, text: str, schema: dict[str, pl.DataType], parse_text: bool = False, any_type: bool = False
    ) -> None:
        if not text.strip():
            raise UsageError("the condition is empty; example: price < 50")
        if len(text) > LONGEST:
            raise UsageError(f"the condition has {len(text):,} characters; {LONGEST:,} allowed")
        self.text, self.schema, self.parse_text, self.any_type = text, schema, parse_text, any_type
        self.read: set[str] = set()
        self.depth, self.next = 0, 0
        self.tokens = self._tokens()

    def whole(self) -> pl.Expr:
        found = self._either()
        if self._peek().kind != "end":
            raise self._error("expected 'and', 'or' or the end")
        if not self.read:
            raise UsageError(f"condition {self.text!r} names no column; columns: {', '.join(self.schema)}")
        return found

    # -- tokens -----------------------------------------------------------------------------------------------

    def _tokens(self) -> list[_Token]:
        tokens, at, end = [], 0, len(self.text.rstrip())
        while at < end:
            match = TOKEN.match(self.text, at, end)
            if match is None:
                start = at + len(self.text[at:]) - len(self.text[at:].lstrip())
                raise UsageError(
                    f"condition {self.text!r}: cannot read it from character {start + 1}: {self.text[start:]!r}"
                )
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return [*tokens, _Token("end", "", end)]

    def _peek(self) -> _Token:
        return self.tokens[self.next]

    def _take(self) -> _Token:
        token = self._peek()
        self.next += token.kind != "end"
        return token

    def _is(self, *words: str) -> bool:
        """Whether the next token is one of these signs or keywords; if so, it is consumed."""
        token = self._peek()
        found = token.kind in ("word", "sign") and token.value.lower() in words
        self.next += found
        return found

    def _expect(self, word: str) -> None:
        if not self._is(word):
            raise self._error(f"expected {word!r}")

    def _error(self, what: str, token: _Token | None = None) -> UsageError:
        token = token or self._peek()
        where = "at the end" if token.kind == "end" else f"at {token.value} (character {token.at + 1})"
        return UsageError(f"condition {self.text!r}: {what} {where}")

    # -- conditions -------------------------------------------------------------------------------------------

    def _either(self) -> pl.Expr:
        found = self._both()
        while self._is("or"):
            found = found | self._both()
        return found

    def _both(self) -> pl.Expr:
        found = self._one()
        while self._is("and"):
            found = found & self._one()
        return found

    def _one(self) -> pl.Expr:
        self._enter()
        if self._is("not"):
            found = ~self._one()
        elif self._is("("):
            found = self._either()
            self._expect(")")
        else:
            found = self._comparison()
        self.depth -= 1
        return found

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._error(f"nested more than {DEEPEST} deep")

    def _comparison(self) -> pl.Expr:
        start = self._peek()
        left = self._value(first=True)
        if self._is("is"):
            negative = self._is("not")
            self._expect("null")
            return left.expression.is_not_null() if negative else left.expression.is_null()
        negative = self._is("not")
        if self._is("in"):
            found = self._membership(left)
        elif self._is("between"):
            low = self._value()
            self._expect("and")
            found = self._compare(left, ">=", low) & self._compare(left, "<=", self._value())
        elif self._is("like", "contains"):
            found = self._pattern(left, self.tokens[self.next - 1].value.lower())
        elif negative:
            raise self._error("after 'not', expected in, between, like or contains")
        elif self._is(*COMPARISONS):
            found = self._compare(left, self.tokens[self.next - 1].value, self._value())
        elif left.kind == "boolean" or self.any_type:
            found = left.expression
        else:
            raise self._error(f"{left.name} is not true or false by itself; compare it, as in {left.name} = …;", start)
        return ~found if negative else found

    def _membership(self, left: _Value) -> pl.Expr:
        self._expect("(")
        found = self._compare(left, "=", self._value())
        while self._is(","):
            found = found | self._compare(left, "=", self._value())
        self._expect(")")
        return found

    def _pattern(self, left: _Value, word: str) -> pl.Expr:
        token = self._take()
        if token.kind not in ("text", "quoted"):
            raise self._error(f"{word} takes a text in quotes, found", token)
        wanted = _unquoted(token.value)
        if left.kind not in ("text", "texts") and not self.any_type:
            raise UsageError(f"condition {self.text!r}: {word} reads text, but {left.name} holds {_held(left)}")
        element = left.expression if left.kind == "text" else pl.element()
        if word == "contains":
            found = element.str.to_lowercase().str.contains(wanted.lower(), literal=True)
        else:
            signs = {"%": ".*", "_": "."}
            pattern = "".join(signs.get(sign) or re.escape(sign) for sign in wanted)
            found = element.str.contains(f"(?s)^{pattern}$")
        return found if left.kind == "text" else left.expression.list.eval(found).list.any()

    # -- values -----------------------------------------------------------------------------------------------

    def _value(self, first: bool = False) -> _Value:
        """first: on the left of a comparison, where a name in double quotes is a column and nothing else."""
        token = self._take()
        word = token.value.lower()
        if token.kind == "text":
            return _literal(_unquoted(token.value))
        if token.kind == "quoted":
            name = _unquoted(token.value)
            return self._column(name, token) if first or name in self.schema else _literal(name)
        if token.kind == "number" or (token.value == "-" and self._peek().kind == "number"):
            sign, digits = (-1, self._take().value) if token.value == "-" else (1, token.value)
            return _literal(sign * self._number(digits, token))
        if token.kind == "word" and word in ("true", "false"):
            return _literal(word == "true")
        if token.kind == "word" and self._peek().value == "(" and word not in KEYWORDS:
            return self._function(word, token)
        if token.kind == "word" and word not in KEYWORDS:
            return self._column(token.value, token)
        if token.kind == "word" and word == "null":
            raise self._error("compare with null by 'is null' or 'is not null', found", token)
        raise self._error("expected a column or a value", token)

    def _number(self, digits: str, token: _Token) -> int | float:
        number = int(digits) if digits.isdecimal() and len(digits) < 19 else float(digits)
        if number == float("inf"):
            raise self._error("a number too large", token)
        return number

    def _function(self, word: str, token: _Token) -> _Value:
        if word not in FUNCTIONS:
            raise UsageError(
                f"condition {self.text!r}: unknown function {word} (character {token.at + 1}); functions: "
                f"{', '.join(FUNCTIONS)}"
            )
        self._expect("(")
        self._enter()
        inner = self._value(first=True)
        self._expect(")")
        self.depth -= 1
        if inner.kind != FUNCTIONS[word] and not self.any_type:
            raise UsageError(
                f"condition {self.text!r}: {word}() reads a {FUNCTIONS[word]}, but {inner.name} holds {_held(inner)}"
            )
        name, of = f"{word}({inner.name})", inner.expression
        if word == "lower":
            return _Value("text", of.str.to_lowercase(), name)
        if word == "upper":
            return _Value("text", of.str.to_uppercase(), name)
        if word == "length":
            return _Value("number", of.str.len_chars(), name)
        return _Value("number", of.abs() if word == "abs" else of.dt.year(), name)

    def _column(self, name: str, token: _Token) -> _Value:
        folded = [one for one in self.schema if one.lower() == name.lower()]
        if name not in self.schema and len(folded) != 1:
            near = folded or get_close_matches(name, self.schema, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"condition {self.text!r}: unknown column {name} (character {token.at + 1}); {meant}columns there: "
                f"{', '.join(self.schema)}"
            )
        name = name if name in self.schema else folded[0]
        self.read.add(name)
        kind, expression = _of_type(name, self.schema[name])
        if kind == "nothing":
            raise UsageError(f"condition {self.text!r}: {name} holds {self.schema[name]}, which cannot be compared")
        return _Value(kind, expression, name)

    def _compare(self, left: _Value, sign: str, right: _Value) -> pl.Expr:
        if self.any_type:
            return left.expression.is_null()
        if self.parse_text and {left.kind, right.kind} == {"text", "number"}:
            left, right = _parsed(left), _parsed(right)
        if {left.kind, right.kind} == {"time", "text"}:
            left, right = self._times(left, right)
        if left.kind != right.kind or left.kind == "texts":
            advice = f"; write {left.name} contains '…'" if "texts" in (left.kind, right.kind) else ""
            raise UsageError(
                f"condition {self.text!r}: {left.name} ({_held(left)}) and {right.name} ({_held(right)}) cannot be "
                f"compared{advice}"
            )
        a, b = left.expression, right.expression
        if sign in ("=", "=="):
            return a == b
        if sign in ("!=", "<>"):
            return a != b
        return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[sign]

    def _times(self, left: _Value, right: _Value) -> tuple[_Value, _Value]:
        """A date without a time of day is compared with days, else times are compared to the microsecond, in UTC."""
        text = left if left.kind == "text" else right
        try:
            moment = datetime.fromisoformat(text.literal) if isinstance(text.literal, str) else None
        except ValueError:
            moment = None
        if moment is None:
            raise UsageError(
                f"condition {self.text!r}: {text.name} is not a date such as '2024-12-31' or '2024-12-31 18:00'"
            )
        day = len(str(text.literal).strip()) <= len("2024-12-31")
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
        literal = pl.lit(date(moment.year, moment.month, moment.day)) if day else pl.lit(moment)

        def side(value: _Value) -> _Value:
            if value is text:
                return _Value("time", literal, value.name)
            return _Value("time", value.expression.cast(pl.Date) if day else value.expression, value.name)

        return side(left), side(right)


def _unquoted(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])


def _literal(value: str | float | bool) -> _Value:
    kind: Kind = "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
    return _Value(kind, pl.lit(value), repr(value), value)


def _held(value: _Value) -> str:
    return {"number": "numbers", "text": "text", "time": "times", "boolean": "true or false", "texts": "lists of text"}[
        value.kind
    ]


def _of_type(name: str, dtype: pl.DataType) -> tuple[Kind, pl.Expr]:
    """A column's kind, and an expression in which unknown values are null and times are in UTC without a zone."""
    column, kind = pl.col(name), _kind(dtype)
    if dtype.is_float():
        column = column.fill_nan(None)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if kind == "time":
        column = column.cast(pl.Datetime("us"))
    return kind, column.cast(pl.String) if kind == "text" else column


def _kind(dtype: pl.DataType) -> Kind:
    if dtype.is_numeric():
        return "number"
    if isinstance(dtype, pl.List):
        return "texts" if dtype.inner == pl.String else "nothing"
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return "text"
    if isinstance(dtype, pl.Datetime | pl.Date):
        return "time"
    return "boolean" if isinstance(dtype, pl.Boolean) else "nothing"


def _parsed(value: _Value) -> _Value:
    """Text read as a number: "-1", "2.50" and "2,50"; anything else is null."""
    if value.kind == "number" or value.literal is not None:
        return value
    number = value.expression.str.strip_chars().str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    return _Value("number", number.fill_nan(None), value.name)
