"""Recommenders that need no training, small and correct: what any trained model should beat.

Each reads the training part of a domain's sequences (and maybe its texts) and returns a `Scorer`; ranking.py's
protocols and metrics judge them like any run (judge.py).
"""
