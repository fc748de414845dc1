-- Accepts operations for one queue and priority, all or (on an error before the first write) none. Once: the same
-- request that comes again, because its reply was lost, gets the same reply and changes nothing.
-- KEYS  1 registry  2 registry:version  3 delayed  4 metrics  5 wake  6 wake:sync
--       7 the producer's lane: "{number of its last request} {reply} {reply} ...", expires
-- ARGV  1 prefix  2 "{priority}:{queue}"  3 kind a|s|m, or u when the producer does not know the function
--       4 number of the request in its lane  5 for how long its reply is kept (ms)
--       then for each: id, delay (ms), dedup digest or '', dedup window (ms), body
-- Reply one string for each: 'q' queued | 's' scheduled | 'i' the id exists | 'd{holder}' duplicate of holder
-- Cost  2 commands, and about 6 for each operation; at most 1,000 operations a call
local prefix, queue, kind = ARGV[1], ARGV[2], ARGV[3]
local number = tonumber(ARGV[4])

local last = redis.call('GET', KEYS[7])
local last_number = last and tonumber(string.match(last, '^%d+'))
if last_number == number then
  local replies = {}
  for one in string.gmatch(string.sub(last, #ARGV[4] + 1), '%S+') do replies[#replies + 1] = one end
  return replies
end
-- It was on its way for so long that its sender has gone on to other requests, and listens no more.
if last_number and last_number > number then return redis.error_reply('LATE this request was given up') end

local now = now_ms()
local reply, ready = {}, {}
local accepted, duplicates, scheduled = 0, 0, 0
redis.call('LLEN', prefix .. queue)  -- raises when the key is no list: now, while nothing has been written
kind = register_queue(prefix, queue, kind)
for i = 6, #ARGV, 5 do
  local id, delay, digest = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local key = op_key(prefix, id)
  local holder = digest ~= '' and redis.call('GET', prefix .. 'dedup:' .. digest)
  if redis.call('EXISTS', key) == 1 then
    reply[#reply + 1] = 'i'
    duplicates = duplicates + 1
  elseif holder then
    reply[#reply + 1] = 'd' .. holder
    duplicates = duplicates + 1
  else
    local due = now + delay
    if digest ~= '' then
      redis.call('HSET', key, 'st', delay > 0 and 'delayed' or 'ready', 'q', queue, 'b', ARGV[i + 4],
        'ts', now, 'rd', due, 'dk', digest)
      redis.call('SET', prefix .. 'dedup:' .. digest, id, 'PX', tonumber(ARGV[i + 3]) + delay)
    else
      redis.call('HSET', key, 'st', delay > 0 and 'delayed' or 'ready', 'q', queue, 'b', ARGV[i + 4],
        'ts', now, 'rd', due)
    end
    if delay > 0 then
      redis.call('ZADD', KEYS[3], due, id)
      scheduled = scheduled + 1
      reply[#reply + 1] = 's'
    else
      ready[#ready + 1] = id
      reply[#reply + 1] = 'q'
    end
    accepted = accepted + 1
  end
end
if #ready > 0 then redis.call('RPUSH', prefix .. queue, unpack(ready)) end
-- Also for what is only scheduled: a worker that is blocked in a read has to learn when to look again.
if accepted > 0 then wake(prefix, kind) end
depth(prefix, 'd', queue, scheduled)
count(prefix, 'enqueued', accepted)
count(prefix, 'deduplicated', duplicates)
redis.call('SET', KEYS[7], ARGV[4] .. ' ' .. table.concat(reply, ' '), 'PX', ARGV[5])
return reply
