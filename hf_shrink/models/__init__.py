"""Load students, teachers and tokenizers; start a student; check that a pair fits."""
