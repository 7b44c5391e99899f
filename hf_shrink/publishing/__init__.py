"""The model card, written from the report."""
