"""Data sets in, tokenised splits out."""
