"""The commands of `semcache`, one file each, and what they show on a screen. cli.py puts them together."""
