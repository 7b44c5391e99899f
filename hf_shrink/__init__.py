"""Make Transformers models several times smaller while they are fine-tuned, and prove it."""
