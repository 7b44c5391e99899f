"""``python -m hf_shrink`` is ``hf-shrink``."""

from hf_shrink.cli import main

main()
