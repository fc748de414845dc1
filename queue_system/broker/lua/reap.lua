-- Takes back expired leases, and drops what is past its retention.
-- KEYS  1 leases  2 metrics  3 reaper  4 registry  5 failures  6 system_errors  7 workers  8 delayed  9 depths
-- ARGV  1 prefix  2 crashes after which an operation is quarantined  3 interval between reapings (ms)
--       4 lease (ms)  5 retention (ms)  6 at most how many
-- Reply {returned to their queue, in grace 0|1, quarantined operations as 12 values each, like claim with index 0}
-- A quarantined operation is leased to the caller, which gives it up like any other failure.
-- After an outage (no reaping for 3 intervals, or for a lease if that is shorter) nothing is taken back for one lease:
-- its owners are alive, and were as unable to renew as this script was to run.
-- Cost  about 6 commands for each expired lease
local prefix, max_crashes, interval = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease, retention, limit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local now = now_ms()

-- The first write must not be refused when memory is full, hence ZREM before ZADD.
local last = tonumber(redis.call('ZSCORE', KEYS[3], 'last') or now)
local grace = tonumber(redis.call('ZSCORE', KEYS[3], 'grace') or 0)
redis.call('ZREM', KEYS[3], 'last')
redis.call('ZADD', KEYS[3], now, 'last')
-- A lease is renewed well before it ends, and a turn may come late: neither is an outage.
local outage = math.min(3 * interval, math.max(1.5 * interval, lease))
if now - last > outage then
  grace = now + lease
  redis.call('ZADD', KEYS[3], grace, 'grace')
end

local function trim(entries, state)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', entries, '-inf', now - retention, 'LIMIT', 0, limit)) do
    redis.call('ZREM', entries, id)
    local h = redis.call('HMGET', op_key(prefix, id), 'st', 'q')
    if h[1] == state then
      redis.call('DEL', op_key(prefix, id))
      if state == 'failed' and h[2] then depth(prefix, 'f', h[2], -1) end
    end
  end
end
trim(KEYS[5], 'failed')
trim(KEYS[6], 'system_error')
redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', now - 60000)

-- What is counted for a container that is empty was lost with its operations (an eviction, a restore).
for letter, container in pairs({ d = KEYS[8], l = KEYS[1], f = KEYS[5] }) do
  if redis.call('EXISTS', container) == 0 then
    for _, field in ipairs(redis.call('HKEYS', KEYS[9])) do
      if string.sub(field, 1, 1) == letter then redis.call('HDEL', KEYS[9], field) end
    end
  end
end
if now < grace then return { 0, 1, {} } end

-- For how long (ms) an operation is to run alone: as long as it had run, at most, when its worker died.
local function alone_for(claimed, expiry)
  local since = tonumber(string.match(claimed or '', '^%d+') or expiry)
  return math.max(1, math.min(expiry - since, 60000))
end

-- One death may have any cause, and what was in flight goes on as before. The last two before the quarantine are borne
-- alone, so that they tell the one that kills from those that were beside it.
local suspicious = math.max(1, max_crashes - 1)
local returned, quarantined, token = 0, {}, nil
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
for i = 1, #expired, 2 do
  local id = expired[i]
  redis.call('ZREM', KEYS[1], id)
  local key = op_key(prefix, id)
  local h = redis.pcall('HMGET', key, 'st', 'q', 'b', 'at', 'dc', 'cr', 'ex', 'fa', 'rd', 'ts', 'tp', 'w')
  if h.err then
    reject(prefix, KEYS[6], id, 'wrong_type', now, retention)
  elseif h[1] == 'leased' and not (is_queue(h[2]) and are_natural(h, 4, 10)) then
    reject(prefix, KEYS[6], id, 'bad_fields', now, retention)
    if is_queue(h[2]) then depth(prefix, 'l', h[2], -1) end
  elseif h[1] == 'leased' then
    local crashes = (tonumber(h[6]) or 0) + 1
    if crashes > max_crashes then
      local deliveries = (tonumber(h[5]) or 0) + 1
      token = token or new_token(prefix)
      redis.call('HSET', key, 'cr', crashes, 'tk', token, 'dc', deliveries)
      redis.call('ZADD', KEYS[1], now + lease, id)
      for _, value in ipairs({ id, 0, token, deliveries, h[4] or 0, crashes, h[7] or 0, h[8] or 0, h[9] or now,
        h[10] or now, h[11] or '', h[3] or '' }) do
        quarantined[#quarantined + 1] = value
      end
    else
      redis.call('HSET', key, 'cr', crashes, 'st', 'ready')
      if crashes >= suspicious then redis.call('HSET', key, 'al', alone_for(h[12], tonumber(expired[i + 1]))) end
      if type(redis.pcall('LPUSH', prefix .. h[2], id)) == 'table' then
        reject(prefix, KEYS[6], id, 'no_list', now, retention)
      end
      depth(prefix, 'l', h[2], -1)
      wake(prefix, redis.call('HGET', KEYS[4], h[2]))
      returned = returned + 1
    end
  end
end
count(prefix, 'reclaimed', returned + #quarantined / 12)
return { returned, 0, quarantined }
