"""What a worker is made of. `worker.QueueWorker` composes it; nothing here knows the worker."""
