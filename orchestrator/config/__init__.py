"""What a run is told: the settings of every component, composed, found by name, read and checked."""
