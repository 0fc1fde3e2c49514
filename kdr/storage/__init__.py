"""Where everything is stored: paths, files written safely, object stores, and retries when a
storage is unreachable.
"""
