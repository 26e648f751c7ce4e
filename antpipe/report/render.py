"""Specifications become SVG and PNG, with vl-convert (https://github.com/vega/vl-convert): no browser, no network."""

import re
from html import escape
from importlib.util import find_spec

from antpipe.errors import UsageError
from antpipe.report.theme import Spec
from antpipe.store.next_command import shell

VEGA_LITE = "6.1"
INSTALL = shell("pip", "install", "antpipe[report]")
LIBRARIES = {"vl_convert": "vl-convert-python", "jinja2": "jinja2"}


def missing_libraries() -> list[str]:
    """The libraries of a report that are not installed."""
    return [name for module, name in LIBRARIES.items() if find_spec(module) is None]


def require_libraries() -> None:
    """Raise UsageError unless the libraries of a report are installed."""
    missing = missing_libraries()
    if missing:
        are = "are" if missing[1:] else "is"
        raise UsageError(
            f"reports and figures need {' and '.join(missing)}, which {are} missing",
            INSTALL,
        )


def to_svg(spec: Spec, alt: str, name: str) -> str:
    """An SVG element whose alternative text is `alt`. name: begins its ids, which differ from those of other figures.

    The same specification gives the same text, although vl-convert itself numbers ids across figures of a process.
    """
    import vl_convert

    found: str = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    ids = {old: f"{name}-{number}" for number, old in enumerate(re.findall(r' id="([^"]+)"', found))}
    found = re.sub(r'( id="|url\(#)([^")]+)', lambda match: match[1] + ids.get(match[2], match[2]), found)
    return found.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def to_png(spec: Spec, scale: float) -> bytes:
    """A PNG with `scale` pixels per pixel of the specification."""
    import vl_convert

    found: bytes = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=scale)
    return found
