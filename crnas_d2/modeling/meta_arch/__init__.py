"""Meta-architectures that detectron2 does not have."""
