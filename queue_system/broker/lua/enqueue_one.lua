-- Accepts an operation that is due at once and has no dedup key, as most requests do: what enqueue.lua does, without
-- the tables that many operations need, and without a function that is made for nothing. Once, as there.
-- KEYS  1 the producer's lane  2 registry  3 metrics  4 none
-- ARGV  1 prefix  2 "{priority}:{queue}"  3 kind a|s|m, or u when the producer does not know the function
--       4 number of the request in its lane  5 for how long its reply is kept (ms)  6 id  7 body
--       8 what the lane has if the request before it was one like this, and queued
-- Reply {'q'} queued | {'i{\31 queue \31 processor}'} the id exists, as in enqueue.lua
-- Cost  9 commands, one more where the queue was empty
local prefix, queue, id, kind = ARGV[1], ARGV[2], ARGV[6], ARGV[3]

-- First all is read that decides on the reply: what cannot be read raises while nothing has been written.
local t = redis.call('TIME')
-- In ms, as a text: it is only stored, so no number need be formed.
local now = t[1] .. string.sub('00000' .. t[2], -6, -4)
local known = redis.call('HGET', KEYS[2], queue)
local key = prefix .. 'op:' .. id
local answer = redis.call('EXISTS', key) == 0 and 'q'
if not answer then
  -- functions
  answer = exists_as(key)
end
local last = redis.pcall('SET', KEYS[1], ARGV[4] .. ' ' .. answer, 'PX', ARGV[5], 'GET')

-- Mostly the request before it was one like this, and the queue is known. Texts are quicker compared than made numbers.
if known and (kind == 'u' or known == 'm') then kind = known end
if last ~= ARGV[8] or answer ~= 'q' or known ~= kind then
  -- functions
  local instead
  instead, last = judged(KEYS[1], ARGV[4], last, ARGV[5])
  if instead then return instead end
  -- Unless a key of that name is no list, and the request refused below.
  if known ~= kind and type(redis.pcall('LLEN', prefix .. queue)) ~= 'table' then
    kind = note_kind(prefix, queue, known, kind)
  end
  if answer ~= 'q' then
    add(KEYS[3], 'deduplicated', 1)
    return { answer }
  end
end

local put = redis.pcall('RPUSH', prefix .. queue, id)
if type(put) == 'table' then  -- a key of that name that is no list
  redis.call('SET', KEYS[1], last or '0', 'PX', ARGV[5])  -- 0 is the number of no request
  return put
end
if put == 1 then  -- it was empty: what list_ready does
  local first = string.sub(queue, 1, 1)
  local band = first == 'h' and 0 or first == 'n' and 2e15 or 4e15
  redis.pcall('ZADD', kind == 's' and prefix .. 'ready:sync' or prefix .. 'ready',
    band + t[1] * 1000000 + t[2] - 1.7e15, queue)
end
redis.call('HSET', key, 'st', 'ready', 'q', queue, 'b', ARGV[7], 'ts', now, 'rd', now)
redis.pcall('ZADD', kind == 's' and prefix .. 'wake:sync' or prefix .. 'wake', 0, '0')
local sum = redis.pcall('HINCRBY', KEYS[3], 'enqueued', 1)
if type(sum) == 'table' then redis.pcall('HSET', KEYS[3], 'enqueued', 1) end
return { answer }
