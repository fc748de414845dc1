-- Deletes the given entries of the failures or the system errors, at most 500 a call; or the oldest.
-- KEYS  1 failures or system_errors  2 none
-- ARGV  1 prefix  2 how many of the oldest, 0 for those given  then ids
-- Reply how many it deleted
local ids = { unpack(ARGV, 3) }
local state = string.sub(KEYS[1], -8) == 'failures' and 'failed' or 'system_error'
if ARGV[2] ~= '0' then ids = redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1) end
local deleted = 0
for _, id in ipairs(ids) do
  if drop_given_up(ARGV[1], KEYS[1], state, id) then deleted = deleted + 1 end
end
return deleted
