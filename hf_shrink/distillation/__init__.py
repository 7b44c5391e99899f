"""Learn from a teacher: losses, the teacher, and the one place that reduces and mixes them."""
