-- One page of the failures or the system errors, newest first.
-- KEYS  1 failures or system_errors
-- ARGV  1 prefix  2 offset  3 how many (at most 500)  or  4 one id
-- Reply 8 values for each: id, queue, state, body, attempts, error, history, given up (ms)
local ids = { ARGV[4] }
if #ids == 0 then ids = redis.call('ZREVRANGE', KEYS[1], ARGV[2], ARGV[2] + ARGV[3] - 1) end
local reply = {}
for _, id in ipairs(ids) do
  local h = redis.call('HMGET', op_key(ARGV[1], id), 'q', 'st', 'b', 'at', 'err', 'hist', 'fl')
  if h[2] == 'failed' or h[2] == 'system_error' then
    reply[#reply + 1] = id
    for i = 1, 7 do reply[#reply + 1] = h[i] or '' end
  end
end
return reply
