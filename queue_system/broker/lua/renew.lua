-- Prolongs the leases of operations whose latest token the caller holds.
-- KEYS  1 leases
-- ARGV  1 prefix  2 lease (ms)  then for each: id, token
-- Reply the ids whose lease is lost
-- Cost  3 commands for each. ZREM comes before ZADD, so that it is not refused when memory is full.
local expiry = now_ms() + tonumber(ARGV[2])
local lost = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  if holds(ARGV[1], id, ARGV[i + 1]) and redis.call('ZREM', KEYS[1], id) == 1 then
    redis.call('ZADD', KEYS[1], expiry, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
