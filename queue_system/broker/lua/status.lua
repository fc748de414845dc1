-- All counts in one instant: what get_queue_status shows and what the invariants are checked against.
-- KEYS  1 registry  2 delayed  3 leases  4 failures  5 system_errors  6 metrics  7 workers
-- ARGV  1 prefix  2 age (ms) up to which a worker counts as alive  3 retention (ms, 0: not known) of what was given up:
--       older entries do not count, though without a worker nobody takes them out
-- Reply {now (ms), {queue, length, ...}, delayed, leased, failures, system errors, metrics, worker figures}
--       worker figures are 3 values for each live worker: id, threads, threads busy (as a share of 1)
-- Cost  O(queues + workers)
local prefix, now = ARGV[1], now_ms()
local queues = {}
for _, queue in ipairs(redis.call('HKEYS', KEYS[1])) do
  queues[#queues + 1] = queue
  queues[#queues + 1] = length_of(prefix .. queue)
end
local function kept(entries)
  if ARGV[3] == '0' then return redis.call('ZCARD', entries) end
  return redis.call('ZCOUNT', entries, '(' .. string.format('%.0f', now - tonumber(ARGV[3])), '+inf')
end
local workers = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[7], now - tonumber(ARGV[2]), '+inf')) do
  local h = redis.call('HMGET', prefix .. 'worker:' .. id, 'threads', 'utilization')
  workers[#workers + 1], workers[#workers + 2], workers[#workers + 3] = id, h[1] or '0', h[2] or '0'
end
return { now, queues, redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), kept(KEYS[4]),
  kept(KEYS[5]), redis.call('HGETALL', KEYS[6]), workers }
