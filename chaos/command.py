"""``python -m chaos.command ARGS``: the command ``queue-system ARGS`` itself, ended when its standard input ends."""

from __future__ import annotations

import sys
import threading

from chaos.worker import end_with_input
from queue_system.cli import main

if __name__ == "__main__":
    threading.Thread(target=end_with_input, name="chaos-lifeline", daemon=True).start()
    sys.exit(main())
