-- Puts an operation from the failures or system errors back into its queue, with all its attempts before it again.
-- KEYS  1 failures or system_errors  2 metrics  3 registry
-- ARGV  1 prefix  2 id  3 its state there: failed | system_error
-- Reply 1 queued | 0 there is no such entry, or it has no queue or body to go back with
local prefix, id = ARGV[1], ARGV[2]
local key = op_key(prefix, id)
local h = redis.call('HMGET', key, 'st', 'q', 'k', 'b')
if h[1] ~= ARGV[3] or not is_queue(h[2]) or not h[4] then return 0 end
redis.call('ZREM', KEYS[1], id)
redis.call('PERSIST', key)
redis.call('HDEL', key, 'at', 'cr', 'al', 'ex', 'fa', 'fl', 'err')
redis.call('HSET', key, 'st', 'ready', 'rd', now_ms())
redis.call('RPUSH', prefix .. h[2], id)
if ARGV[3] == 'failed' then depth(prefix, 'f', h[2], -1) end
count(prefix, h[3] == 'c' and 'callbacks_requeued' or 'requeued', 1)
wake(prefix, redis.call('HGET', KEYS[3], h[2]))
return 1
