"""Tuning: labelled pairs, training, curves. Tools beside the proxy: nothing here is imported while it serves."""
