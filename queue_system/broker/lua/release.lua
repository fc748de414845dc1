-- Gives an operation back without burning an attempt: to the head of its queue, or after a delay.
-- KEYS  1 leases  2 delayed  3 registry  4 none
-- ARGV  1 prefix  2 id  3 token  4 reason  5 delay (ms, 0: at once)
--       6 when its processor was first called (ms), 0 when it never was
-- Reply 1 released | 0 stale
local prefix, id, delay = ARGV[1], ARGV[2], tonumber(ARGV[5])
local queue = holds(prefix, id, ARGV[3])
if not queue then return 0 end
local key = op_key(prefix, id)
-- What cannot be read raises while nothing has been written.
if delay > 0 then redis.call('ZCARD', KEYS[2]) else redis.call('LLEN', prefix .. queue) end
redis.call('ZREM', KEYS[1], id)
depth(prefix, 'l', queue, -1)
if ARGV[6] ~= '0' then redis.call('HSET', key, 'fa', ARGV[6]) end
if delay > 0 then
  redis.call('HSET', key, 'st', 'delayed', 'pb', (redis.call('HGET', key, 'dc') or 0) .. ' ' .. ARGV[4],
    'dl', ARGV[5])
  redis.call('ZADD', KEYS[2], now_ms() + delay, id)
  depth(prefix, 'd', queue, 1)
else
  redis.call('HSET', key, 'st', 'ready')
  made_ready(prefix, queue, redis.pcall('HGET', KEYS[3], queue), redis.call('LPUSH', prefix .. queue, id))
end
return 1
