"""What an operator can say, a chapter to a file; config.py puts it together."""
