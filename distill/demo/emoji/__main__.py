"""``python -m distill.demo.emoji``."""

import sys

from distill.demo.emoji.commands import main

sys.exit(main())
