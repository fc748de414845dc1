-- All counts in one instant: what invariant I1 and the depth counters are checked against. Reads only.
-- KEYS  1 registry  2 delayed  3 leases  4 failures  5 system_errors  6 metrics  7 depths
-- ARGV  1 prefix  2 age (ms) above which an expired lease counts as left behind
-- Reply {now (ms), {queue, length, ...}, delayed, leased, failures, system errors, metrics, depths, latest token,
--        leases left behind}
-- Cost  O(queues)
local prefix, now = ARGV[1], now_ms()
local queues = {}
for _, queue in ipairs(redis.call('HKEYS', KEYS[1])) do
  queues[#queues + 1] = queue
  queues[#queues + 1] = length_of(prefix .. queue)
end
return { now, queues, redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]),
  redis.call('ZCARD', KEYS[5]), redis.call('HGETALL', KEYS[6]), redis.call('HGETALL', KEYS[7]),
  redis.call('GET', prefix .. 'token') or '0', redis.call('ZCOUNT', KEYS[3], '-inf', now - tonumber(ARGV[2])) }
