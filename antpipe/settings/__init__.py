"""Every setting with its default, and how a setting gets its value."""
