"""Backbones: what a family is, the families, the two supernets, and which BatchNorm they have."""
