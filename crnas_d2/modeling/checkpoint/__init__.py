"""Checkpoints: whether one fits a backbone, and published weights converted to our networks."""
