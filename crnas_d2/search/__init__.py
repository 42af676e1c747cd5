"""Searches: functions of (space, budget, score). No torch, no networks.

journal.py: scored candidates, written through to disk; memo and resume.
candidates.py: score a list of architectures with the journal as memo; the order of candidates.
stage.py: exhaustive stage search. greedy.py: greedy dilation search (Algorithm 1).
evolution.py, random_search.py: alternatives to both, for spaces too large for them.
"""
