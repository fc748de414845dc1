-- Puts an operation from the failures back into its queue, with all its attempts before it again.
-- KEYS  1 failures  2 metrics  3 registry
-- ARGV  1 prefix  2 id
-- Reply 1 queued | 0 there is no such failure
local prefix, id = ARGV[1], ARGV[2]
local key = op_key(prefix, id)
local h = redis.call('HMGET', key, 'st', 'q', 'k')
if h[1] ~= 'failed' then return 0 end
redis.call('ZREM', KEYS[1], id)
redis.call('PERSIST', key)
redis.call('HDEL', key, 'at', 'cr', 'ex', 'fa', 'fl', 'err')
redis.call('HSET', key, 'st', 'ready', 'rd', now_ms())
redis.call('RPUSH', prefix .. h[2], id)
count(prefix, h[3] == 'c' and 'callbacks_requeued' or 'requeued', 1)
wake(prefix, redis.call('HGET', KEYS[3], h[2]))
return 1
