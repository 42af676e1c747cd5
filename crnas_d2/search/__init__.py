"""Searches: functions of (space, budget, compare). No torch, no networks."""
