"""A worker that notes what is imported and which commands are run, from when it says `ready`.

Its settings come as JSON in argv[1]; the first operation that it processes (`warm_up`) makes it load what every
operation needs, and starts the notes.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from jobs import note

from queue_system import QueueConfig, QueueWorker, processor

# `importlib.import_module` tells of a module by the execution of its code ("exec"); an import statement by its name.
WATCHED = frozenset({"import", "exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"})
watching = False


def audit(event, arguments):
    if watching and event in WATCHED:
        what = getattr(arguments[0], "co_filename", arguments[0])  # a module's code, or its name, or a command
        note("audit", event, ascii(what).replace(" ", "_"))


@processor(name="start_watching")
async def start_watching(entity):
    global watching  # noqa: PLW0603  an audit hook cannot be removed, only told to look
    watching = True


@processor(name="say_hello")
async def say_hello(entity):
    note("hello")


async def main(settings):
    config = QueueConfig(
        redis_url=settings["redis_url"],
        queue_prefix=settings["prefix"],
        importable_modules=settings["importable_modules"],
    )
    worker = QueueWorker(config)
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await worker.start()
    print("ready", flush=True)  # noqa: T201  what the test waits for
    await terminated.wait()
    await worker.stop()


if __name__ == "__main__":
    sys.addaudithook(audit)
    asyncio.run(main(json.loads(sys.argv[1])))
