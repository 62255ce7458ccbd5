"""A simulated model server with the wire forms of real ones: for the demo, the tests and the load tests."""

from semcache.simulate.server import Simulator

__all__ = ["Simulator"]
