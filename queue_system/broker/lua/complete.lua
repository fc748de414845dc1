-- Ends operations well and enqueues their callbacks.
-- KEYS  1 leases  2 metrics  3 registry  4 registry:version  5 wake
-- ARGV  1 prefix  2 how long to keep a done operation (ms, 0: not at all)  3 1 when sent again after a lost reply
--       then for each: id, token, kind 'o'|'c', callback id or '', callback "{priority}:{queue}", callback body
-- Reply 1 done | 0 stale, for each
-- Cost  about 3 commands for each; at most 300 operations a call
local prefix, keep, again = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local now = now_ms()
local reply, ended = {}, {}
local processed, callbacks, stale = 0, 0, 0
for i = 4, #ARGV, 6 do
  local id = ARGV[i]
  local queue = holds(prefix, id, ARGV[i + 1])
  if queue then
    ended[queue] = (ended[queue] or 0) + 1
    local key = op_key(prefix, id)
    redis.call('ZREM', KEYS[1], id)
    if keep > 0 then
      redis.call('HSET', key, 'st', 'done')
      redis.call('PEXPIRE', key, keep)
    else
      -- Now and not in one command at the end: the same id twice in a call must find its second turn stale.
      redis.call('DEL', key)
    end
    if ARGV[i + 2] == 'c' then callbacks = callbacks + 1 else processed = processed + 1 end
    spawn_callback(prefix, now, ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
    reply[#reply + 1] = 1
  else
    stale = stale + 1
    reply[#reply + 1] = 0
  end
end
for queue, n in pairs(ended) do depth(prefix, 'l', queue, -n) end
count(prefix, 'processed', processed)
count(prefix, 'callbacks_processed', callbacks)
if again ~= '1' then count(prefix, 'stale_acks', stale) end
return reply
