-- Discards what waits in one ready list, at most 500 a call.
-- KEYS  1 the ready list  2 metrics  3 ready  4 ready:sync  5 none
-- ARGV  1 prefix
-- Reply how many ids it took out
local ids = redis.call('LPOP', KEYS[1], 500)
if not ids then return 0 end
local discarded = { o = 0, c = 0 }
for _, id in ipairs(ids) do
  local key = op_key(ARGV[1], id)
  local h = fields_of(key, 'st', 'dk', 'k')
  if h[1] == 'ready' then
    release_dedup(ARGV[1], id, h[2])
    redis.call('DEL', key)
    local kind = h[3] == 'c' and 'c' or 'o'
    discarded[kind] = discarded[kind] + 1
  end
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  local queue, place = string.sub(KEYS[1], #ARGV[1] + 1), place_of_empty(now_us())
  redis.pcall('ZADD', KEYS[3], 'XX', place, queue)
  redis.pcall('ZADD', KEYS[4], 'XX', place, queue)
end
count(ARGV[1], 'discarded', discarded.o)
count(ARGV[1], 'callbacks_discarded', discarded.c)
return #ids
