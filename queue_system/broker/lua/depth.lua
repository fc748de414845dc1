-- Counts and ages for the metrics, at a cost that does not depend on how many operations there are.
-- KEYS  1 registry  2 delayed  3 leases  4 failures  5 system_errors  6 metrics  7 depths
-- ARGV  1 prefix
-- Reply {queues, delayed, leased, failures, system errors, metrics}
--       a queue is 6 values: "{priority}:{queue}", ready, delayed, leased, failed, age of the oldest ready one (ms)
-- Cost  O(queues)
local prefix, now = ARGV[1], now_ms()
local queues = {}
for _, queue in ipairs(redis.call('HKEYS', KEYS[1])) do
  local list = prefix .. queue
  local counts = redis.call('HMGET', KEYS[7], 'd:' .. queue, 'l:' .. queue, 'f:' .. queue)
  local ready = length_of(list)
  local head = ready > 0 and redis.call('LINDEX', list, 0)
  local due = head and redis.pcall('HGET', op_key(prefix, head), 'rd')
  due = type(due) == 'string' and tonumber(due)  -- whoever can write to Redis may have put anything there
  local n = #queues
  queues[n + 1], queues[n + 2] = queue, ready
  for i = 1, 3 do queues[n + 2 + i] = math.max(0, tonumber(counts[i]) or 0) end
  queues[n + 6] = due and math.max(0, now - due) or 0
end
return { queues, redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]),
  redis.call('ZCARD', KEYS[5]), redis.call('HGETALL', KEYS[6]) }
