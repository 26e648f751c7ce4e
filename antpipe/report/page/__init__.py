"""The page of a report: its template, style and script."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from antpipe import __version__
from antpipe.report.blocks import Missing, Section
from antpipe.report.theme import DARK, LIGHT


def render(
    title: str,
    headline: str,
    sentences: Sequence[str],
    sections: Sequence[Section],
    missing: Sequence[Missing],
    inputs: Sequence[str],
    pictures: Mapping[str, str],
) -> str:
    """The page as HTML. Every text is escaped; SVG comes from the renderer, which escapes its own."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(part),
    )
    script = part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    return environment.get_template("page.html").render(
        title=title,
        headline=headline,
        sentences=sentences,
        sections=sections,
        missing=missing,
        inputs=inputs,
        pictures=pictures,
        style=style(),
        script=script,
        script_hash=f"sha256-{digest}",
        version=__version__,
    )


def style() -> str:
    """The style sheet with the colours of both schemes."""
    found = part("page.css")
    for name, colours in (("light", LIGHT), ("dark", DARK)):
        found = found.replace(f"{{{{ {name} }}}}", " ".join(f"--{key}: {value};" for key, value in colours.items()))
    return found


@cache
def part(name: str) -> str:
    """A file of this folder."""
    return (files(__package__) / name).read_text(encoding="utf-8")
