"""ShrinkTrainer and checkpoints that survive a kill."""
