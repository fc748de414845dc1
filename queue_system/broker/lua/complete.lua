-- Ends operations well and enqueues their callbacks.
-- KEYS  1 leases  2 metrics  3 registry  4 registry:version  5 wake  6 none
-- ARGV  1 prefix  2 how long to keep a done operation (ms, 0: not at all)  3 1 when sent again after a lost reply
--       then for each: id, token, kind o|c; the kind is O|C when its callback follows: id, "{priority}:{queue}", body
-- Reply 1 done | 0 stale, for each
-- Cost  1 command for each, 1 more where it has a callback and those of that, 3 more where it is kept; at most 300
--       operations a call. All is read before anything is written.
local prefix, keep, again = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local now = now_ms()
local reply, ended, seen = {}, {}, {}
local plain, plain_keys = {}, {}  -- those of which nothing is left and which nothing follows
local others, others_at = {}, {}  -- all others, and where in ARGV their callbacks begin (false without one)
local known = {}  -- the kinds of the callbacks' queues
local processed, callbacks, stale = 0, 0, 0

local function finish(id, callback)
  local key = op_key(prefix, id)
  redis.call('ZREM', KEYS[1], id)
  if keep > 0 then
    redis.call('HSET', key, 'st', 'done')
    redis.call('PEXPIRE', key, keep)
  else
    redis.call('DEL', key)
  end
  if callback then
    local its_queue = ARGV[callback + 1]
    known[its_queue] = spawn_callback(prefix, now, ARGV[callback], its_queue, ARGV[callback + 2], known[its_queue])
  end
end

local i = 4
while i <= #ARGV do
  local id, kind = ARGV[i], ARGV[i + 2]
  local followed = (kind == 'O' or kind == 'C') and i + 3
  -- The same id twice in a call: its second turn is stale.
  local queue = not seen[id] and holds(prefix, id, ARGV[i + 1])
  if queue then
    seen[id] = true
    ended[queue] = (ended[queue] or 0) + 1
    if followed and known[ARGV[followed + 1]] == nil then
      known[ARGV[followed + 1]] = check_callbacks(prefix, ARGV[followed + 1])
    end
    if followed or keep > 0 then
      others[#others + 1] = id
      others_at[#others] = followed
    else
      plain[#plain + 1], plain_keys[#plain_keys + 1] = id, op_key(prefix, id)
    end
    if kind == 'c' or kind == 'C' then callbacks = callbacks + 1 else processed = processed + 1 end
    reply[#reply + 1] = 1
  else
    stale = stale + 1
    reply[#reply + 1] = 0
  end
  i = followed and i + 6 or i + 3
end
for j, id in ipairs(others) do finish(id, others_at[j]) end
if #plain > 0 then
  redis.call('ZREM', KEYS[1], unpack(plain))
  redis.call('DEL', unpack(plain_keys))
end
for queue, n in pairs(ended) do depth(prefix, 'l', queue, -n) end
count(prefix, 'processed', processed)
count(prefix, 'callbacks_processed', callbacks)
if again ~= '1' then count(prefix, 'stale_acks', stale) end
return reply
