-- All counts in one instant: what invariant I1, the depth counters and the index are checked against. Reads only.
-- KEYS  1 registry  2 delayed  3 leases  4 failures  5 system_errors  6 metrics  7 depths  8 ready  9 ready:sync
-- ARGV  1 prefix  2 age (ms) above which an expired lease counts as left behind
-- Reply {now (ms), {queue, length, ...}, delayed, leased, failures, system errors, metrics, depths, latest token,
--        leases left behind, where the index is wrong: {queue, what, ...}}
-- Cost  O(queues)
local prefix, now = ARGV[1], now_ms()

-- The places of a side's queues that are listed as ready.
local function listed(key)
  local places = {}
  local flat = redis.pcall('ZRANGEBYSCORE', key, '-inf', '(6000000000000000', 'WITHSCORES')
  for i = 1, flat.err and 0 or #flat, 2 do places[flat[i]] = tonumber(flat[i + 1]) end
  return places
end

local own, of_sync = listed(KEYS[8]), listed(KEYS[9])
local queues, wrong = {}, {}
local flat = redis.call('HGETALL', KEYS[1])
local last = now_us() + 1000000
for i = 1, #flat, 2 do
  local queue, length = flat[i], length_of(prefix .. flat[i])
  queues[#queues + 1], queues[#queues + 2] = queue, length
  local here, there = own, of_sync
  if flat[i + 1] == 's' then here, there = of_sync, own end
  local place, what = here[queue], nil
  if there[queue] then
    what = 'listed on the wrong side'
  elseif is_queue(queue) and length > 0 and not place then
    what = 'not listed, and not empty'
  elseif place and length == 0 then
    what = 'listed, and empty'
  elseif place and (place < place_of_ready(queue, 1.7e15) or place > place_of_ready(queue, last)) then
    what = 'listed at the wrong place'
  end
  if what then wrong[#wrong + 1], wrong[#wrong + 2] = queue, what end
  own[queue], of_sync[queue] = nil, nil
end
for _, places in ipairs({ own, of_sync }) do
  for queue in pairs(places) do wrong[#wrong + 1], wrong[#wrong + 2] = queue, 'listed, and not known' end
end
return { now, queues, redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]),
  redis.call('ZCARD', KEYS[5]), redis.call('HGETALL', KEYS[6]), redis.call('HGETALL', KEYS[7]),
  redis.call('GET', prefix .. 'token') or '0', redis.call('ZCOUNT', KEYS[3], '-inf', now - tonumber(ARGV[2])), wrong }
