"""``python -m distill.demo.emoji``."""

import sys

from distill.demo.emoji.cli import main

sys.exit(main())
