-- Puts an operation from the failures or system errors back into its queue, with all its attempts before it again. Its
-- deduplication key is its own again, for a whole window, unless another operation has taken it meanwhile.
-- KEYS  1 failures or system_errors  2 metrics  3 registry  4 none
-- ARGV  1 prefix  2 id  3 its state there: failed | system_error
-- Reply 1 queued | 0 there is no such entry, or it has no queue or body to go back with
local prefix, id = ARGV[1], ARGV[2]
local key = op_key(prefix, id)
local h = redis.call('HMGET', key, 'st', 'q', 'k', 'b', 'dk', 'dw')
if h[1] ~= ARGV[3] or not is_queue(h[2]) or not h[4] then return 0 end
redis.call('LLEN', prefix .. h[2])  -- raises when it is no list, while nothing has been written
redis.call('ZREM', KEYS[1], id)
forget_size(prefix, id)
redis.call('PERSIST', key)
redis.call('HDEL', key, 'at', 'cr', 'al', 'ex', 'fa', 'fl', 'err')
redis.call('HSET', key, 'st', 'ready', 'rd', now_ms())
made_ready(prefix, h[2], redis.pcall('HGET', KEYS[3], h[2]), redis.call('RPUSH', prefix .. h[2], id))
if h[5] and are_natural(h, 6, 6) and tonumber(h[6] or 0) > 0 then
  redis.call('SET', prefix .. 'dedup:' .. h[5], holder_entry(id, h[2], h[4]), 'NX', 'PX', h[6])
end
if ARGV[3] == 'failed' then depth(prefix, 'f', h[2], -1) end
count(prefix, h[3] == 'c' and 'callbacks_requeued' or 'requeued', 1)
return 1
