-- Shared by the scripts: the loader puts those functions in front of each that it calls, directly or not. So there is
-- nothing here but functions, each of which calls only those above it.
--
-- No script ends half-way. Whoever can write to Redis may have put a key of another type where a container should be, so
-- a script that writes reads first what it is going to touch: what cannot be read raises while nothing has been
-- written. Counters, markers and the registry's version are not worth a refusal: what is wrong with them is tolerated.
-- And it declares the key `none`, which never exists: with one key that is missing, a slot of a cluster that is being
-- moved refuses a script before it begins, also when the keys it declares are still there and the operations are not.
--
-- Fields of an operation's hash (absent means 0 or none):
--   st state: ready | delayed | leased | done | failed | system_error
--   q  "{priority}:{queue}"   b  body     k  'o' operation, 'c' callback
--   ts accepted, rd due, fa first call of its processor, fl given up: milliseconds, clock of Redis
--   tk fencing token          dc deliveries          at attempts that ended   cr crashes   ex exhaustions
--   dk dedup digest, dw its window (ms)                        err last error (JSON)              hist attempts (JSON lines)
--   tp trace of the last attempt (traceparent)
--   al for how long it is to run alone (ms): it is a suspect, for workers have died during it (see reap)
--   dl delay that was asked for when it was last put back (ms); that of its enqueue is rd - ts
--   w  last claim: "{milliseconds} {worker}"     pb last put back with a delay: "{deliveries by then} {reason}"

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function op_key(prefix, id)
  return prefix .. 'op:' .. id
end

-- Anybody who can write to Redis may have written a hash: what it says of itself is checked before it is used.

-- Whether an answer is the error that the key is of another type; any other one (a right that is missing, say) tells
-- nothing of the key, and must not cost an operation.
local function is_wrong_type(answer)
  return type(answer) == 'table' and string.find(tostring(answer.err), 'WRONGTYPE', 1, true) ~= nil
end

-- Fields of a hash; none of them when the key is no hash.
local function fields_of(key, ...)
  local h = redis.pcall('HMGET', key, ...)
  if h.err and not is_wrong_type(h) then return redis.call('HMGET', key, ...) end  -- which raises
  return h
end

-- Whether all of these are counts or times: absent, or 1 to 15 digits.
local function are_natural(h, first, last)
  for i = first, last do
    local v = h[i]
    if v and (#v > 15 or #v == 0 or string.find(v, '%D')) then return false end
  end
  return true
end

-- Whether it is the name of a queue, and not of any other key: pushing to that one could destroy it.
local function is_queue(q)
  local priority = q and #q <= 71 and string.match(q, '^(%l+):[%w_.-]+$')
  return priority == 'high' or priority == 'normal' or priority == 'low'
end

-- A counter that somebody has overwritten with a text starts anew: it must not end a script half-way.
local function add(key, field, n)
  if n == 0 then return end
  local sum = redis.pcall('HINCRBY', key, field, n)
  if type(sum) == 'table' then redis.pcall('HSET', key, field, n) end
end

-- Notes what was given up. A key of that name that is no sorted set is moved out of the way: there is no other place.
local function add_entry(prefix, entries, id, now, retention)
  local added = redis.pcall('ZADD', entries, now, id)
  if not is_wrong_type(added) then return end
  local broken = prefix .. 'broken:' .. string.sub(entries, #prefix + 1)
  redis.call('RENAME', entries, broken)
  redis.call('PEXPIRE', broken, retention)
  redis.call('ZADD', entries, now, id)
end

-- What cannot be understood goes to the system errors, with its bytes. The caller has taken it out of its container.
local function reject(prefix, entries, id, reason, now, retention)
  local key = op_key(prefix, id)
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'hash' and kind ~= 'none' then
    redis.call('RENAME', key, prefix .. 'broken:' .. id)
    redis.call('PEXPIRE', prefix .. 'broken:' .. id, retention)
  end
  redis.call('HSET', key, 'st', 'system_error', 'fl', now, 'err', '{"reason":"' .. reason .. '"}')
  redis.call('PEXPIRE', key, retention)
  add_entry(prefix, entries, id, now, retention)
  add(prefix .. 'metrics', 'system_errors', 1)
end

-- How many ids wait in a list; 0 for a key of that name that is no list.
local function length_of(list)
  local n = redis.pcall('LLEN', list)
  return type(n) == 'number' and n or 0
end

-- Wakes one idle worker that can take an operation of this kind ('s': needs a thread).
local function wake(prefix, kind)
  redis.pcall('ZADD', kind == 's' and prefix .. 'wake:sync' or prefix .. 'wake', 0, '0')
end

-- The index of the queues, in a sorted set for each side, so that a claim costs what is ready and not what is known:
-- `ready:sync` for the kind 's', `ready` for the others. Its members are "{priority}:{queue}". Below 6e15 are those whose
-- list has something: by priority, then by since when (microseconds) they have it or were last served. Above are the
-- empty ones, by since when they are empty. The lists are the truth: claim and reap put right what is not so.

local function index_of(prefix, kind)
  return kind == 's' and prefix .. 'ready:sync' or prefix .. 'ready'
end

local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Counted from 2023-11-14, so that all places are whole numbers of a double until the year 2087.
local function place_of_ready(queue, us)
  local first = string.sub(queue, 1, 1)
  return (first == 'h' and 0 or first == 'n' and 2e15 or 4e15) + us - 1.7e15
end

local function place_of_empty(us)
  return 6e15 + us - 1.7e15
end

-- A key of that name that is no sorted set hinders nobody: claim moves it out of the way.
local function list_ready(prefix, queue, kind, us)
  redis.pcall('ZADD', index_of(prefix, kind), place_of_ready(queue, us), queue)
end

-- Takes a queue to the other side of the index.
local function change_sides(prefix, queue, from, to)
  local place = redis.pcall('ZSCORE', index_of(prefix, from), queue)
  if type(place) == 'string' then
    redis.call('ZREM', index_of(prefix, from), queue)
    redis.pcall('ZADD', index_of(prefix, to), place, queue)
  end
end

-- Makes a queue known that is on record as one of the kind `known`, or (false) not at all. The kinds are 'a' async,
-- 's' sync, 'm' both, 'u' not known yet. Returns the kind on record.
local function note_kind(prefix, queue, known, kind)
  if known == kind or known == 'm' or (known and kind == 'u') then return known end
  if known and known ~= 'u' then kind = 'm' end
  if known and (known == 's') ~= (kind == 's') then change_sides(prefix, queue, known, kind) end
  redis.call('HSET', prefix .. 'registry', queue, kind)
  -- All that counts of a version is that it is not the one before.
  redis.pcall('INCR', prefix .. 'registry:version')
  return kind
end

local function register_queue(prefix, queue, kind)
  return note_kind(prefix, queue, redis.call('HGET', prefix .. 'registry', queue), kind)
end

-- One id was put into the list of a queue of this kind, or (false) one that is not known: the list is `length` long now.
local function made_ready(prefix, queue, kind, length, us)
  if type(kind) == 'table' then kind = 'u' end  -- the registry cannot be read: whoever claims sees it
  kind = kind or note_kind(prefix, queue, false, 'u')
  if length == 1 then list_ready(prefix, queue, kind, us or now_us()) end
  wake(prefix, kind)
end

-- A fencing token, given once and never again, also when an id comes back after its operation has ended: whoever held
-- the old one may still be about. One for all deliveries of a call is enough, because ids differ. An error if that key
-- is no number.
local function new_token(prefix)
  return redis.pcall('INCR', prefix .. 'token')
end

-- The operation's queue when this token is the latest one and still holds the lease, else false.
local function holds(prefix, id, token)
  local h = fields_of(op_key(prefix, id), 'st', 'tk', 'q')
  return h[1] == 'leased' and h[2] == token and is_queue(h[3]) and h[3]
end

-- How many operations of a queue are delayed ('d'), leased ('l') and failed ('f'): for the metrics, whose cost must not
-- depend on how many there are. The containers are the truth: reap puts the counts right when a container is empty.
local function depth(prefix, letter, queue, n)
  add(prefix .. 'depths', letter .. ':' .. queue, n)
end

local function count(prefix, field, n)
  add(prefix .. 'metrics', field, n)
end

-- What was given up and is kept has its size (bytes) in the hash `sizes`, and their sum in the depths.
local function note_size(prefix, id, size)
  redis.pcall('HSET', prefix .. 'sizes', id, size)
  add(prefix .. 'depths', 'bytes', size)
end

local function forget_size(prefix, id)
  local size = tonumber(redis.pcall('HGET', prefix .. 'sizes', id) or 0) or 0
  redis.pcall('HDEL', prefix .. 'sizes', id)
  add(prefix .. 'depths', 'bytes', -size)
end

-- Deletes an entry of what was given up, unless its id is that of a new operation by now: past its retention the hash is
-- gone before the entry. Returns whether there was such an entry.
local function drop_given_up(prefix, entries, state, id)
  if redis.call('ZREM', entries, id) == 0 then return false end
  forget_size(prefix, id)
  local h = redis.pcall('HMGET', op_key(prefix, id), 'st', 'q')
  if h[1] == state then
    redis.call('DEL', op_key(prefix, id))
    if state == 'failed' and h[2] then depth(prefix, 'f', h[2], -1) end
  end
  return true
end

-- Deletes the oldest entries, at most `limit`, while there are more than so many, or all that is kept is larger. The
-- newest stays in any case.
local function keep_within(prefix, entries, state, most, most_bytes, limit)
  local evicted, kept = 0, redis.pcall('ZCARD', entries)
  if type(kept) ~= 'number' then return end
  while evicted < limit and kept > 1 do
    local bytes = tonumber(redis.pcall('HGET', prefix .. 'depths', 'bytes') or 0) or 0
    if kept <= most and bytes <= most_bytes then break end
    drop_given_up(prefix, entries, state, redis.call('ZRANGE', entries, 0, 0)[1])
    kept, evicted = kept - 1, evicted + 1
  end
  count(prefix, 'failures_evicted', evicted)
end

-- A comma-separated list of counters, each increased by one.
local function count_all(prefix, fields)
  for field in string.gmatch(fields, '[^,]+') do count(prefix, field, 1) end
end

-- An operation as a duplicate is told of it: its id, queue and processor, which a dedup key holds and so outlive it.
-- The processor is '' where the body does not say it, or not in one word.
local function holder_entry(id, queue, body)
  local processor = string.match(body or '', '"processor":"([^"\\%s%c]*)"')
  return id .. '\31' .. (queue or '') .. '\31' .. (processor or '')
end

-- The id in such an entry.
local function holder_id(entry)
  return string.match(entry, '^[^\31]*')
end

local function release_dedup(prefix, id, digest)
  if digest and digest ~= '' then
    local key = prefix .. 'dedup:' .. digest
    local entry = redis.pcall('GET', key)
    if type(entry) == 'string' and holder_id(entry) == id then redis.call('DEL', key) end
  end
end

-- What is answered when an id exists: what a duplicate is told of it, without the id.
local function exists_as(key)
  local h = redis.pcall('HMGET', key, 'q', 'b')
  if h.err then return 'i' end
  return 'i' .. holder_entry('', is_queue(h[1]) and h[1], h[2])
end

-- Raises when that queue can take no callback, before anything is written. Returns the kind on record.
local function check_callbacks(prefix, queue)
  redis.call('LLEN', prefix .. queue)
  return redis.call('HGET', prefix .. 'registry', queue)
end

-- A callback is an operation of its own, born in the script that commits its parent's outcome. `known` is what
-- `check_callbacks` returned; returns the kind on record from now on.
local function spawn_callback(prefix, now, id, queue, body, known)
  local kind = note_kind(prefix, queue, known, 'a')
  redis.call('HSET', op_key(prefix, id), 'st', 'ready', 'q', queue, 'b', body, 'k', 'c', 'ts', now, 'rd', now)
  made_ready(prefix, queue, kind, redis.call('RPUSH', prefix .. queue, id))
  count(prefix, 'callbacks_enqueued', 1)
  return kind
end

-- Adds one record to the history of attempts, which stays below 32 KiB: the oldest go first.
local function append_history(key, record)
  if record == '' then return end
  local history = redis.call('HGET', key, 'hist')
  history = history and (history .. '\n' .. record) or record
  while #history > 32768 do
    local cut = string.find(history, '\n', 1, true)
    if not cut then break end
    history = string.sub(history, cut + 1)
  end
  redis.call('HSET', key, 'hist', history)
end

-- The answer to a request was left in its producer's lane, in exchange for `last`, or refused with that error. Returns
-- what to reply instead if the request is not to be carried out, else nil; and what was there, to be put back if it
-- cannot be carried out.
local function judged(lane, number, last, ttl)
  local refused = type(last) == 'table' and last
  if refused then last = redis.call('GET', lane) end  -- out of memory, say: an answer that is kept is given all the same
  local ahead = last and tonumber(string.match(last, '^%d+') or 0) - number
  if not ahead or ahead < 0 then return refused or nil, last end
  if ahead > 0 and refused then return refused end
  if not refused then redis.call('SET', lane, last, 'PX', ttl) end
  -- It was on its way for so long that its sender has gone on to other requests, and listens no more.
  if ahead > 0 then return redis.error_reply('LATE this request was given up') end
  local replies = {}
  for one in string.gmatch(string.sub(last, #number + 1), '%S+') do replies[#replies + 1] = one end
  return replies
end

-- Leaves the answer there. Returns as `judged` does.
local function answer_in(lane, number, answer, ttl)
  return judged(lane, number, redis.pcall('SET', lane, number .. ' ' .. answer, 'PX', ttl, 'GET'), ttl)
end
