-- Takes back expired leases, drops what is past its retention, and tends the index of the queues.
-- KEYS  1 leases  2 metrics  3 reaper  4 registry  5 failures  6 system_errors  7 workers  8 delayed  9 depths
--       10 registry:version  11 ready  12 ready:sync  13 none
-- ARGV  1 prefix  2 crashes after which an operation is quarantined  3 interval between reapings (ms)
--       4 lease (ms)  5 retention (ms)  6 at most how many  7 since when (ms) no call of the caller's failed; -1 never
--       8 most failures, and system errors, that are kept  9 most bytes of both
-- Reply {returned to their queue, in grace 0|1, quarantined operations as 12 values each, like claim with index 0,
--        times put right}
-- A quarantined operation is leased to the caller, which gives it up like any other failure.
-- After an outage (no reaping for 3 intervals, or for a lease if that is shorter) nothing is taken back for one lease:
-- its owners are alive, and were as unable to renew as this script was to run. Nor does a caller take anything back
-- before it has seen a whole lease of good service: a good moment among bad ones is not enough for the owners to renew.
-- No time that is kept may be later than can be true: else Redis's clock was ahead when it was written, and has been set
-- right since. It is then brought down to what was asked for, from now.
-- Cost  about 6 commands for each expired lease; once in an interval, by whichever worker, one for each of about 100
--       queues, which take turns, and 7 for each of at most 50 on a side that have been empty for the retention
local prefix, max_crashes, interval = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease, retention, limit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local now = now_ms()

-- First all is read that can raise, while nothing has been written.
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
-- The first write must not be refused when memory is full, hence ZREM before ZADD.
local last = tonumber(redis.call('ZSCORE', KEYS[3], 'last') or now)
local grace = tonumber(redis.call('ZSCORE', KEYS[3], 'grace') or 0)
redis.call('ZREM', KEYS[3], 'last')
redis.call('ZADD', KEYS[3], now, 'last')
-- A lease is renewed well before it ends, and a turn may come late: neither is an outage.
local outage = math.min(3 * interval, math.max(1.5 * interval, lease))
if now - last > outage or grace > now + lease then
  grace = now + lease
  redis.call('ZADD', KEYS[3], grace, 'grace')
end

local corrected = 0
-- Entries of a sorted set that are later than `latest` come down to `to`.
local function bring_down(key, latest, to)
  local late = redis.pcall('ZRANGEBYSCORE', key, '(' .. latest, '+inf', 'LIMIT', 0, limit)
  for _, member in ipairs(late) do redis.call('ZADD', key, 'XX', to, member) end
  corrected = corrected + #late
end
-- A second of tolerance: a clock that is kept right by small steps is not worth a word.
local longest = tonumber(redis.call('ZSCORE', KEYS[3], 'lease') or 0)
if lease > longest then
  longest = lease
  redis.call('ZADD', KEYS[3], longest, 'lease')
end
bring_down(KEYS[1], now + longest + 1000, now + longest)
for i = 5, 7 do bring_down(KEYS[i], now + 1000, now) end

-- What is delayed is looked at step by step, when the clock has gone back, and every ten minutes: it cannot be told by
-- its time alone.
local function look_at_delayed(cursor)
  local step = redis.pcall('ZSCAN', KEYS[8], cursor, 'COUNT', 500)
  if step.err then return end
  local woken
  for i = 1, #step[2], 2 do
    local id, due = step[2][i], tonumber(step[2][i + 1])
    if due > now + 1000 then
      local key = op_key(prefix, id)
      local h = redis.pcall('HMGET', key, 'ts', 'rd', 'dl', 'q')
      local asked = not h.err and are_natural(h, 1, 3) and (h[3] or (h[1] and h[2] and h[2] - h[1]))
      asked = asked and tonumber(asked)
      if asked and asked >= 0 and due > now + asked + 1000 then
        redis.call('ZADD', KEYS[8], 'XX', now + asked, id)
        redis.call('HSET', key, 'rd', now + asked, 'dl', asked)
        corrected, woken = corrected + 1, true
      end
    end
  end
  if woken then
    wake(prefix, 'a')
    wake(prefix, 's')
  end
  redis.call('ZADD', KEYS[3], step[1], 'delayed', now, 'looked')
end
local went_back = last > now + 1000
local looked = tonumber(redis.call('ZSCORE', KEYS[3], 'looked') or 0)
local cursor = string.format('%.0f', redis.call('ZSCORE', KEYS[3], 'delayed') or 0)
if went_back then cursor = '0' end
if went_back or cursor ~= '0' or looked > now or now - looked > 600000 then look_at_delayed(cursor) end
count(prefix, 'clock_corrected', corrected)

local function trim(entries, state)
  -- One that is no sorted set has nothing to drop: there is no id in an error.
  for _, id in ipairs(redis.pcall('ZRANGEBYSCORE', entries, '-inf', now - retention, 'LIMIT', 0, limit)) do
    drop_given_up(prefix, entries, state, id)
  end
  keep_within(prefix, entries, state, tonumber(ARGV[8]), tonumber(ARGV[9]), limit)
end
trim(KEYS[5], 'failed')
trim(KEYS[6], 'system_error')
redis.pcall('ZREMRANGEBYSCORE', KEYS[7], '-inf', now - 60000)

-- What is counted for a container that is empty was lost with its operations (an eviction, a restore).
for letter, container in pairs({ d = KEYS[8], l = KEYS[1], f = KEYS[5] }) do
  if redis.call('EXISTS', container) == 0 then
    for _, field in ipairs(redis.pcall('HKEYS', KEYS[9])) do
      if string.sub(field, 1, 1) == letter then redis.call('HDEL', KEYS[9], field) end
    end
  end
end

-- What is not so in the index was written by an earlier version, or by hand; or a clock was set.
local function put_right(queue, kind, us, place, elsewhere)
  local here = index_of(prefix, kind)
  place = tonumber(place or -1)
  if elsewhere then redis.pcall('ZREM', index_of(prefix, kind == 's' and 'a' or 's'), queue) end
  if length_of(prefix .. queue) > 0 then
    if place < place_of_ready(queue, 1.7e15) or place > place_of_ready(queue, us) then
      list_ready(prefix, queue, kind, us)
      wake(prefix, kind)
    end
  elseif place < place_of_empty(1.7e15) or place > place_of_empty(us) then
    redis.pcall('ZADD', here, place_of_empty(us), queue)
  end
end

-- Forgets a queue that has been empty and unused for the retention. One that still has something elsewhere, such as a
-- failure, is looked at again when that time has passed once more.
local function forget(queue, index, us)
  local fields = { 'd:' .. queue, 'l:' .. queue, 'f:' .. queue }
  local used = length_of(prefix .. queue) > 0
  local counts = redis.pcall('HMGET', KEYS[9], unpack(fields))
  if counts.err then return false end
  for _, n in ipairs(counts) do used = used or (tonumber(n) or 0) > 0 end
  redis.call('ZREM', index, queue)
  if used then
    redis.call('ZADD', index, place_of_empty(us), queue)
  else
    redis.call('HDEL', KEYS[4], queue)
    redis.call('HDEL', KEYS[9], unpack(fields))
  end
  return not used
end

local function tend_index()
  local us, forgotten = now_us(), false
  local step = redis.pcall('HSCAN', KEYS[4], string.format('%.0f', redis.call('ZSCORE', KEYS[3], 'cursor') or 0),
    'COUNT', 100)
  if step.err then return end  -- no registry: claims say so
  local names, kinds = {}, {}
  for i = 1, #step[2], 2 do
    if is_queue(step[2][i]) then names[#names + 1], kinds[#kinds + 1] = step[2][i], step[2][i + 1] end
  end
  local places, of_sync = {}, {}
  if #names > 0 then
    places = redis.pcall('ZMSCORE', KEYS[11], unpack(names))
    of_sync = redis.pcall('ZMSCORE', KEYS[12], unpack(names))
  end
  for i, queue in ipairs(names) do
    local here, there = places[i], of_sync[i]
    if kinds[i] == 's' then here, there = there, here end
    put_right(queue, kinds[i], us, here, there)
  end
  redis.call('ZADD', KEYS[3], now, 'swept', step[1], 'cursor')
  for side = 11, 12 do
    local old = redis.pcall('ZRANGEBYSCORE', KEYS[side], '6000000000000000', place_of_empty(us - 1000 * retention),
      'LIMIT', 0, 50)
    for _, queue in ipairs(old) do forgotten = forget(queue, KEYS[side], us) or forgotten end
  end
  if forgotten then redis.pcall('INCR', KEYS[10]) end
end
local swept = tonumber(redis.call('ZSCORE', KEYS[3], 'swept') or 0)
if swept > now or now - swept >= interval then tend_index() end
local good = tonumber(ARGV[7])
if now < grace or (good >= 0 and good < lease) then return { 0, 1, {}, corrected } end

-- For how long (ms) an operation is to run alone: as long as it had run, at most, when its worker died.
local function alone_for(claimed, expiry)
  local since = tonumber(string.match(claimed or '', '^%d+') or expiry)
  return math.max(1, math.min(expiry - since, 60000))
end

-- One death may have any cause, and what was in flight goes on as before. The last two before the quarantine are borne
-- alone, so that they tell the one that kills from those that were beside it.
local suspicious = math.max(1, max_crashes - 1)
local returned, quarantined, token = 0, {}, nil
for i = 1, #expired, 2 do
  local id = expired[i]
  local key = op_key(prefix, id)
  local h = redis.pcall('HMGET', key, 'st', 'q', 'b', 'at', 'dc', 'cr', 'ex', 'fa', 'rd', 'ts', 'tp', 'w')
  if h.err and not is_wrong_type(h) then break end  -- a right that is missing, say: nothing is known of it
  redis.call('ZREM', KEYS[1], id)
  if h.err then
    reject(prefix, KEYS[6], id, 'wrong_type', now, retention)
  elseif h[1] == 'leased' and not (is_queue(h[2]) and are_natural(h, 4, 10)) then
    reject(prefix, KEYS[6], id, 'bad_fields', now, retention)
    if is_queue(h[2]) then depth(prefix, 'l', h[2], -1) end
  elseif h[1] == 'leased' then
    local crashes = (tonumber(h[6]) or 0) + 1
    if crashes > max_crashes then token = token or new_token(prefix) end
    if crashes > max_crashes and type(token) == 'table' then  -- no number: it cannot be leased, and waits
      redis.call('ZADD', KEYS[1], expired[i + 1], id)
    elseif crashes > max_crashes then
      local deliveries = (tonumber(h[5]) or 0) + 1
      redis.call('HSET', key, 'cr', crashes, 'tk', token, 'dc', deliveries)
      redis.call('ZADD', KEYS[1], now + lease, id)
      for _, value in ipairs({ id, 0, token, deliveries, h[4] or 0, crashes, h[7] or 0, h[8] or 0, h[9] or now,
        h[10] or now, h[11] or '', h[3] or '' }) do
        quarantined[#quarantined + 1] = value
      end
    else
      redis.call('HSET', key, 'cr', crashes, 'st', 'ready')
      if crashes >= suspicious then redis.call('HSET', key, 'al', alone_for(h[12], tonumber(expired[i + 1]))) end
      local length = redis.pcall('LPUSH', prefix .. h[2], id)
      if type(length) == 'table' then
        reject(prefix, KEYS[6], id, 'no_list', now, retention)
      else
        made_ready(prefix, h[2], redis.pcall('HGET', KEYS[4], h[2]), length)
      end
      depth(prefix, 'l', h[2], -1)
      returned = returned + 1
    end
  end
end
count(prefix, 'reclaimed', returned + #quarantined / 12)
return { returned, 0, quarantined, corrected }
