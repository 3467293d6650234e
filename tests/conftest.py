"""Settings for all tests."""

from hypothesis import settings

settings.register_profile("slth", deadline=None)  # numba compiles on a first call, and a busy machine is slow
settings.load_profile("slth")
