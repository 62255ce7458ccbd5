"""`semcache demo`: a made-up shop's customers, asked through the proxy."""
