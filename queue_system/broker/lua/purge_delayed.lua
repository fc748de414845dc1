-- Discards what is delayed for one queue, a step of a scan a call.
-- KEYS  1 delayed  2 metrics  3 none
-- ARGV  1 prefix  2 "{priority}:{queue}"  3 cursor
-- Reply {next cursor ('0': done), how many it took out}
local step = redis.call('ZSCAN', KEYS[1], ARGV[3], 'COUNT', 500)
local discarded = { o = 0, c = 0 }
for i = 1, #step[2], 2 do
  local id = step[2][i]
  local key = op_key(ARGV[1], id)
  local h = fields_of(key, 'st', 'dk', 'k', 'q')
  if h[1] == 'delayed' and h[4] == ARGV[2] then
    redis.call('ZREM', KEYS[1], id)
    release_dedup(ARGV[1], id, h[2])
    redis.call('DEL', key)
    local kind = h[3] == 'c' and 'c' or 'o'
    discarded[kind] = discarded[kind] + 1
  end
end
depth(ARGV[1], 'd', ARGV[2], -(discarded.o + discarded.c))
count(ARGV[1], 'discarded', discarded.o)
count(ARGV[1], 'callbacks_discarded', discarded.c)
return { step[1], discarded.o + discarded.c }
