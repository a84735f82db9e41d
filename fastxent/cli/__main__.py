"""``python -m fastxent.cli``: the command, where no script of it is on the path."""

import sys

from fastxent.cli import main

sys.exit(main())
