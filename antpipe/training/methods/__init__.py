"""Methods beyond ANT: cures for negative transfer, in the steps of a target or across domains and runs."""
