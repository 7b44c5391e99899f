"""Store weights in fewer bits, and keep what must stay precise."""
