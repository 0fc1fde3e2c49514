"""Fixtures and settings that every test shares."""

from hypothesis import settings

settings.register_profile("kdr", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("kdr")
