"""What is looked at in a request before anything answers it, without a model: see `guardrails` in the configuration.

Read in order: suspicion.py (what a check can say), texts.py and normal.py (which words are looked at, and how they are
made comparable), phrases.py with injection.py and exfiltration.py (known phrases), secrets.py and redaction.py,
inspection.py (all of it for one body). extraction.py watches rates, hook.py asks a firewall of yours.
"""
