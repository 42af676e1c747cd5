"""Searches: functions of a space and of what compares candidates (race.py). No torch, no networks."""
