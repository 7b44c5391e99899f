"""Numbers with units and settings, taken the same way of every model."""
