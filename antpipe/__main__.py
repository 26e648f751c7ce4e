"""`python -m antpipe` is the `antpipe` command."""

from antpipe.cli import main

if __name__ == "__main__":
    main()
