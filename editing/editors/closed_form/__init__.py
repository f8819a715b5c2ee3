"""Methods that solve for their change: target values first, then a least-squares problem a layer."""
