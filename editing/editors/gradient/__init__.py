"""Methods that read their change off gradients."""
