"""The operator's port: listener.py says who may call, the others are what can be called."""
