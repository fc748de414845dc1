"""All that speaks to Redis. `commands` says what, `sync` and `aio` only carry it out."""
