"""Who may ask, and for how much: virtual keys, tokens of an identity provider, quotas, signed chains of proxies."""
