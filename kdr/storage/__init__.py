"""Paths of a storage, safe writes, object stores, and retries while a storage is unreachable."""
