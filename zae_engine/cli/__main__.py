"""``python -m zae_engine.cli``, where the `zae` script is not at hand."""

from .main import main

main()
