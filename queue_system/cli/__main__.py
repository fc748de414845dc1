"""``python -m queue_system.cli``: the command where its script is not on the path."""

import sys

from queue_system.cli import main

sys.exit(main())
