"""Remove weights: criteria score, masks select, the pruner applies, surgery makes it physical."""
