"""Searches: functions of (space, budget, compare). No torch, no networks.

stage.py: exhaustive stage search. greedy.py: greedy dilation search (Algorithm 1). alternatives.py:
random search and evolution, for spaces too large for those two. race.py: compares candidates on
portions of archval. journal.py: scored candidates on disk, memo and resume.
"""
