"""What the actors do, as plain classes of one process: no Ray here, so that a test or the Python API runs them too."""
