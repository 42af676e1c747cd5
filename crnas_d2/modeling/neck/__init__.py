"""Necks that detectron2 does not have."""
