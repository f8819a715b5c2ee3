"""The HTTP service: the run loop behind an API, from a laptop's loopback to a guarded deployment.

``core`` owns the threads that write, ``app`` speaks HTTP, ``page/`` is what a browser sees. Nothing here knows Ray.
"""
