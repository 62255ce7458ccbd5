"""The audit log: who did what to this proxy, and what it served for what, in lines that hold each other in place.

Read in order: record.py (what a line holds), chain.py (how lines are tied together), file.py (how several processes
append to one file, and how it is rotated), outcomes.py (what of a request belongs in it),
log.py (how nobody waits for it), verify.py (how it is checked).
"""
