"""What from_pretrained calls, and saving that proves the folder loads again."""
