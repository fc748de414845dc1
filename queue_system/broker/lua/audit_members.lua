-- One step over a sorted set of ids: whose hash is not in the state that the set stands for, and how many of each queue.
-- Reads only.
-- KEYS  1 leases or delayed or failures or system_errors
-- ARGV  1 prefix  2 state that the set stands for  3 cursor  4 about how many
-- Reply {next cursor ('0': done), how many it saw, ids that do not belong, {queue, how many in that state, ...}}
-- Cost  one command for each id
local prefix, state = ARGV[1], ARGV[2]
local step = redis.call('ZSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4])
local wrong, tally, flat = {}, {}, {}
for i = 1, #step[2], 2 do
  local id = step[2][i]
  local h = redis.pcall('HMGET', op_key(prefix, id), 'st', 'q')
  if h.err or h[1] ~= state then
    wrong[#wrong + 1] = id
  elseif h[2] then
    tally[h[2]] = (tally[h[2]] or 0) + 1
  end
end
for queue, n in pairs(tally) do
  flat[#flat + 1], flat[#flat + 2] = queue, n
end
return { step[1], #step[2] / 2, wrong, flat }
