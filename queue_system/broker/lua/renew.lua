-- Prolongs the leases of operations whose latest token the caller holds.
-- KEYS  1 leases  2 none
-- ARGV  1 prefix  2 lease (ms)  then for each: id, token
-- Reply the positions (from 1) of those whose lease is lost: an id can be there twice, with an old and a new token
-- Cost  3 commands for each. ZREM comes before ZADD, so that it is not refused when memory is full.
local expiry = now_ms() + tonumber(ARGV[2])
local lost = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  if holds(ARGV[1], id, ARGV[i + 1]) and redis.call('ZREM', KEYS[1], id) == 1 then
    redis.call('ZADD', KEYS[1], expiry, id)
  else
    lost[#lost + 1] = (i - 1) / 2
  end
end
return lost
