-- Prolongs the leases of operations whose latest token the caller holds.
-- KEYS  1 leases  2 none
-- ARGV  1 prefix  2 lease (ms)  then for each: id, token
-- Reply the positions (from 1) of those whose lease is lost: an id can be there twice, with an old and a new token
-- Cost  3 commands for each
-- A lease whose new expiry cannot be written stays as it is: where it was taken out first, an operation that is leased
-- would be in no container.
local expiry = now_ms() + tonumber(ARGV[2])
local lost = {}

-- Whether there was a lease to prolong. When memory is full, a removal must come first.
local function prolong(id)
  if not redis.call('ZSCORE', KEYS[1], id) then return false end
  local added = redis.pcall('ZADD', KEYS[1], expiry, id)
  if type(added) == 'number' then return true end
  if not string.find(added.err, 'OOM', 1, true) then error(added.err) end
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZADD', KEYS[1], expiry, id)
  return true
end

for i = 3, #ARGV, 2 do
  if not (holds(ARGV[1], ARGV[i], ARGV[i + 1]) and prolong(ARGV[i])) then lost[#lost + 1] = (i - 1) / 2 end
end
return lost
