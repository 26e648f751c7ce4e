"""What keeps an installation and a store well: `doctor` looks at both, `store gc` removes what nothing refers to."""
