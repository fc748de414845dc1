-- Accepts operations for one queue and priority, all or (on an error before the first write) none. Once: the same
-- request that comes again, because its reply was lost, gets the same reply and changes nothing.
-- KEYS  1 registry  2 registry:version  3 delayed  4 metrics  5 wake  6 wake:sync
--       7 the producer's lane: "{number of its last request} {reply} {reply} ...", expires
--       8 none
-- ARGV  1 prefix  2 "{priority}:{queue}"  3 kind a|s|m, or u when the producer does not know the function
--       4 number of the request in its lane  5 for how long its reply is kept (ms)
--       then for each: id, delay (ms), dedup digest or '', dedup window (ms), body
-- Reply one string for each: 'q' queued | 's' scheduled | 'i{\31 queue \31 processor}' the id exists, as that |
--       'd{id \31 queue \31 processor}' duplicate of that one. Queue and processor are missing, or '', if not known
-- Cost  7 commands, 2 more where the queue was empty, and one for each operation, 2 more with a dedup key; at most
--       1,000 operations a call
local prefix, queue = ARGV[1], ARGV[2]

-- First all is read that decides on the replies: what cannot be read raises while nothing has been written.
local now = now_ms()
local known = redis.call('HGET', KEYS[1], queue)
local keys, n = {}, 0
for i = 6, #ARGV, 5 do
  n = n + 1
  keys[n] = op_key(prefix, ARGV[i])
end
local some_exist = n > 0 and redis.call('EXISTS', unpack(keys)) > 0
local reply, new, ready, scheduled = {}, 0, {}, {}
local taken, holders = {}, {}
for j = 1, n do
  local i = 5 * j + 1
  local id, digest = ARGV[i], ARGV[i + 2]
  local window = digest ~= '' and ARGV[i + 1] + ARGV[i + 3]
  if window and not (window >= 1 and window < 1e15) then
    return redis.error_reply('ERR a deduplication window of ' .. ARGV[i + 3] .. ' ms is out of range')
  end
  local holder = digest ~= '' and (holders[digest] or redis.call('GET', prefix .. 'dedup:' .. digest))
  if taken[id] then
    reply[j] = 'i' .. holder_entry('', queue, taken[id])
  elseif some_exist and redis.call('EXISTS', keys[j]) == 1 then
    reply[j] = exists_as(keys[j])
  elseif holder then
    reply[j] = 'd' .. string.gsub(holder, '%s', '')  -- answers are kept with spaces between them
  else
    new = new + 1
    taken[id] = ARGV[i + 4]
    if digest ~= '' then holders[digest] = holder_entry(id, queue, ARGV[i + 4]) end
    if ARGV[i + 1] == '0' then
      reply[j] = 'q'
      ready[#ready + 1] = id
    else
      reply[j] = 's'
      scheduled[#scheduled + 1] = now + ARGV[i + 1]
      scheduled[#scheduled + 1] = id
    end
  end
end

if #ready > 0 and #scheduled > 0 then redis.call('LLEN', prefix .. queue) end

local instead, last = answer_in(KEYS[7], ARGV[4], table.concat(reply, ' '), ARGV[5])
if instead then return instead end

-- A key of that name that is no such container refuses the ids, and with them the request.
local added = #scheduled > 0 and redis.pcall('ZADD', KEYS[3], unpack(scheduled))
local refused = type(added) == 'table' and added
local put = not refused and #ready > 0 and redis.pcall('RPUSH', prefix .. queue, unpack(ready))
refused = refused or type(put) == 'table' and put
if refused then
  redis.call('SET', KEYS[7], last or '0', 'PX', ARGV[5])  -- 0 is the number of no request
  return refused
end
local at = now .. ''  -- as a text, which is made once
for j = 1, n do
  if reply[j] == 'q' or reply[j] == 's' then
    local i = 5 * j + 1
    local key, digest, state, due = keys[j], ARGV[i + 2], 'ready', at
    if reply[j] == 's' then state, due = 'delayed', now + ARGV[i + 1] end
    if digest == '' then
      redis.call('HSET', key, 'st', state, 'q', queue, 'b', ARGV[i + 4], 'ts', at, 'rd', due)
    else
      redis.call('HSET', key, 'st', state, 'q', queue, 'b', ARGV[i + 4], 'ts', at, 'rd', due, 'dk', digest,
        'dw', ARGV[i + 3])
      redis.call('SET', prefix .. 'dedup:' .. digest, holders[digest], 'PX', ARGV[i + 1] + ARGV[i + 3])
    end
  end
end
local kind = note_kind(prefix, queue, known, ARGV[3])
if put == #ready then list_ready(prefix, queue, kind, now_us()) end  -- these are the first
-- Also for what is only scheduled: a worker that is blocked in a read has to learn when to look again.
if new > 0 then wake(prefix, kind) end
if #scheduled > 0 then depth(prefix, 'd', queue, #scheduled / 2) end
add(KEYS[4], 'enqueued', new)
add(KEYS[4], 'deduplicated', n - new)
return reply
