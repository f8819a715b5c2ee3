"""From a model alone to a preset: facts that it knows, layers, settings, all by measuring."""
