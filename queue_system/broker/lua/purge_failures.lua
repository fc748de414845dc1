-- Deletes the given entries of the failures or the system errors, at most 500 a call; or the oldest.
-- KEYS  1 failures or system_errors  2 none
-- ARGV  1 prefix  2 how many of the oldest, 0 for those given  then ids
-- Reply how many it deleted
local ids = { unpack(ARGV, 3) }
local state = string.sub(KEYS[1], -8) == 'failures' and 'failed' or 'system_error'
if ARGV[2] ~= '0' then ids = redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1) end
local deleted = 0
for _, id in ipairs(ids) do
  if redis.call('ZREM', KEYS[1], id) == 1 then
    local key = op_key(ARGV[1], id)
    -- Past its retention the hash is gone before the entry, and the id may be that of a new operation.
    local h = fields_of(key, 'st', 'q')
    if h[1] == state then
      redis.call('DEL', key)
      if state == 'failed' and h[2] then depth(ARGV[1], 'f', h[2], -1) end
    end
    deleted = deleted + 1
  end
end
return deleted
