"""``python -m cdm_serve``."""

import sys

from cdm_serve.cli import main

if __name__ == "__main__":
    sys.exit(main())
