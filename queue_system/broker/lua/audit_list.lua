-- One page of a ready list, and which of its ids the hash does not place there. Reads only.
-- KEYS  1 the ready list
-- ARGV  1 prefix  2 "{priority}:{queue}"  3 first index  4 last index
-- Reply {length of the list, ids, those that do not belong: position in the page (from 1), state, queue, ...}
--       the state is '' without one, '-' when there is no such key, '!' when the key is no hash
-- Cost  one command for each id; the caller asks for at most 250
local prefix, queue = ARGV[1], ARGV[2]
local ids = redis.call('LRANGE', KEYS[1], ARGV[3], ARGV[4])
local wrong = {}
local function note(i, state, its_queue)
  wrong[#wrong + 1], wrong[#wrong + 2], wrong[#wrong + 3] = i, state, its_queue
end
for i, id in ipairs(ids) do
  local key = op_key(prefix, id)
  local h = redis.pcall('HMGET', key, 'st', 'q')
  if h.err then
    note(i, '!', '')
  elseif h[1] ~= 'ready' or (h[2] and h[2] ~= queue) then
    note(i, h[1] or (redis.call('EXISTS', key) == 1 and '' or '-'), h[2] or '')
  end
end
return { redis.call('LLEN', KEYS[1]), ids, wrong }
