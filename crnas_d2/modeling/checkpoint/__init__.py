"""Checkpoints: whether one fits a backbone, and other projects' weights converted to ours."""
