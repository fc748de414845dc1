-- Deletes entries of the failures or the system errors, oldest first, at most 500 a call; or those given.
-- KEYS  1 failures or system_errors
-- ARGV  1 prefix  then ids (none: the oldest 500)
-- Reply how many it deleted
local ids = { unpack(ARGV, 2) }
if #ids == 0 then ids = redis.call('ZRANGE', KEYS[1], 0, 499) end
local deleted = 0
for _, id in ipairs(ids) do
  if redis.call('ZREM', KEYS[1], id) == 1 then
    redis.call('DEL', op_key(ARGV[1], id))
    deleted = deleted + 1
  end
end
return deleted
