-- Ends an attempt and schedules the next one.
-- KEYS  1 leases  2 delayed  3 metrics  4 none
-- ARGV  1 prefix  2 id  3 token  4 delay (ms)  5 exhaustions to add  6 counters, comma-separated
--       7 record of the attempt (JSON)  8 1 when sent again after a lost reply  9 its trace (traceparent) or ''
--       10 when its processor was first called (ms), 0 when it never was
-- Reply 1 scheduled | 0 stale
local prefix, id = ARGV[1], ARGV[2]
local queue = holds(prefix, id, ARGV[3])
if not queue then
  if ARGV[8] ~= '1' then count(prefix, 'stale_acks', 1) end
  return 0
end
local key, due = op_key(prefix, id), now_ms() + tonumber(ARGV[4])
redis.call('ZCARD', KEYS[2])  -- raises when it is no sorted set, while nothing has been written
redis.call('ZREM', KEYS[1], id)
if ARGV[10] == '0' then
  redis.call('HSET', key, 'st', 'delayed', 'rd', due, 'dl', ARGV[4])
else
  redis.call('HSET', key, 'st', 'delayed', 'rd', due, 'dl', ARGV[4], 'fa', ARGV[10])
end
add(key, 'at', 1)
if ARGV[5] ~= '0' then add(key, 'ex', ARGV[5]) end
if ARGV[9] ~= '' then redis.call('HSET', key, 'tp', ARGV[9]) end
append_history(key, ARGV[7])
redis.call('ZADD', KEYS[2], due, id)
depth(prefix, 'l', queue, -1)
depth(prefix, 'd', queue, 1)
count_all(prefix, ARGV[6])
return 1
