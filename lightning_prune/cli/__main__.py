"""``python -m lightning_prune.cli``."""

import sys

from lightning_prune.cli.main import main

sys.exit(main())
