"""``python -m distill``, for launchers that want a module."""

import sys

from distill.cli import main

sys.exit(main())
