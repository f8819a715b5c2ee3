"""Methods that put a module into a layer and leave its weights alone."""
