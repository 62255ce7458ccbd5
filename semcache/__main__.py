"""`python -m semcache` is the command `semcache`."""

from semcache.cli import main

main(prog_name="semcache")
