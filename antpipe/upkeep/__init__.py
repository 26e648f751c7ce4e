"""Maintenance of an installation and a store: `doctor` checks both, `store gc` removes what nothing refers to."""
