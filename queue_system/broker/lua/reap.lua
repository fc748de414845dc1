-- Takes back expired leases, and drops what is past its retention.
-- KEYS  1 leases  2 metrics  3 reaper  4 registry  5 failures  6 system_errors  7 workers
-- ARGV  1 prefix  2 crashes after which an operation is quarantined  3 interval between reapings (ms)
--       4 lease (ms)  5 retention (ms)  6 at most how many
-- Reply {returned to their queue, in grace 0|1, quarantined operations as 9 values each, like claim with index 0}
-- A quarantined operation is leased to the caller, which gives it up like any other failure.
-- After an outage (no reaping for 3 intervals) nothing is taken back for one lease: its owners are alive, and were
-- as unable to renew as this script was to run.
-- Cost  about 6 commands for each expired lease
local prefix, max_crashes, interval = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease, retention, limit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local now = now_ms()

-- The first write must not be refused when memory is full, hence ZREM before ZADD.
local last = tonumber(redis.call('ZSCORE', KEYS[3], 'last') or now)
local grace = tonumber(redis.call('ZSCORE', KEYS[3], 'grace') or 0)
redis.call('ZREM', KEYS[3], 'last')
redis.call('ZADD', KEYS[3], now, 'last')
if now - last > 3 * interval then
  grace = now + lease
  redis.call('ZADD', KEYS[3], grace, 'grace')
end

local function trim(key, age)
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', now - age, 'LIMIT', 0, limit)
  if #old > 0 then redis.call('ZREM', key, unpack(old)) end
end
trim(KEYS[5], retention)
trim(KEYS[6], retention)
trim(KEYS[7], 60000)
if now < grace then return { 0, 1, {} } end

local returned, quarantined = 0, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit)) do
  redis.call('ZREM', KEYS[1], id)
  local key = op_key(prefix, id)
  local h = redis.call('HMGET', key, 'st', 'q', 'b', 'at', 'dc', 'cr', 'ex', 'fa', 'rd')
  if h[1] == 'leased' and h[2] then
    local crashes = (tonumber(h[6]) or 0) + 1
    if crashes > max_crashes then
      local token = (tonumber(h[5]) or 0) + 1
      redis.call('HSET', key, 'cr', crashes, 'dc', token)
      redis.call('ZADD', KEYS[1], now + lease, id)
      for _, value in ipairs({ id, 0, token, h[4] or 0, crashes, h[7] or 0, h[8] or now, h[9] or now, h[3] or '' }) do
        quarantined[#quarantined + 1] = value
      end
    else
      redis.call('HSET', key, 'cr', crashes, 'st', 'ready')
      redis.call('LPUSH', prefix .. h[2], id)
      wake(prefix, redis.call('HGET', KEYS[4], h[2]))
      returned = returned + 1
    end
  end
end
count(prefix, 'reclaimed', returned + #quarantined / 9)
return { returned, 0, quarantined }
