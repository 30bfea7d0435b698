"""Pretrained encoders of pictures and texts, computed by JAX from the files of their weights, without downloads."""
