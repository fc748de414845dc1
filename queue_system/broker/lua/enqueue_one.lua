-- Accepts an operation that is due at once and has no dedup key, as most requests do: what enqueue.lua does, without
-- the tables that many operations need. Once, as there.
-- KEYS  1 the producer's lane  2 registry  3 metrics
-- ARGV  1 prefix  2 "{priority}:{queue}"  3 kind a|s|m, or u when the producer does not know the function
--       4 number of the request in its lane  5 for how long its reply is kept (ms)  6 id  7 body
-- Reply {'q'} queued | {'i'} the id exists
-- Cost  9 commands
local prefix, queue, id = ARGV[1], ARGV[2], ARGV[6]

-- First all is read that decides on the reply: what cannot be read raises while nothing has been written.
local now = now_text()
local known = redis.call('HGET', KEYS[2], queue)
local key = op_key(prefix, id)
local answer = redis.call('EXISTS', key) == 0 and 'q' or 'i'
local instead, last = answer_in(KEYS[1], ARGV[4], answer, ARGV[5])
if instead then return instead end
if answer == 'i' then
  note_kind(prefix, queue, known, ARGV[3])
  add(KEYS[3], 'deduplicated', 1)
  return { answer }
end

local put = redis.pcall('RPUSH', prefix .. queue, id)
if type(put) == 'table' then  -- a key of that name that is no list
  redis.call('SET', KEYS[1], last or '0', 'PX', ARGV[5])  -- 0 is the number of no request
  return put
end
redis.call('HSET', key, 'st', 'ready', 'q', queue, 'b', ARGV[7], 'ts', now, 'rd', now)
wake(prefix, note_kind(prefix, queue, known, ARGV[3]))
add(KEYS[3], 'enqueued', 1)
return { answer }
