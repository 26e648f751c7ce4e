"""The commands, by subject: each parses, calls and prints. cli.py puts them together."""
