"""Embedding with antpipe and the plain way, taking turns: `python -m benchmarks.embed [text] [image]`.

Prints a table per part. A part is a module of this package with `add_flags(parser)` and `run(given)`.
"""

import argparse
from types import ModuleType

from antpipe.runtime.process import tune_process
from benchmarks import embed_image, embed_text

PARTS: dict[str, ModuleType] = {"text": embed_text, "image": embed_image}


def main() -> None:
    tune_process()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a small table, once, to see that it works")
    parser.add_argument("--repeats", type=int, default=5, help="turns per way")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (pictures: with torchcodec)")
    for part in PARTS.values():
        part.add_flags(parser)
    given = parser.parse_args()
    for name in given.parts or PARTS:
        if name not in PARTS:
            parser.error(f"{name}: choose from {', '.join(PARTS)}")
        PARTS[name].run(given)


if __name__ == "__main__":
    main()
