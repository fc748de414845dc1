-- Moves what is due to its queue, then leases ready operations in strict priority order.
-- KEYS  1 leases  2 delayed  3 metrics  4 wake  5 wake:sync  6 system_errors  7 registry  8 registry:version
--       9.. the ready lists, in the order in which to take from them
-- ARGV  1 prefix  2 free async slots  3 free sync slots  4 lease (ms)  5 registry version that the worker knows
--       6 one letter a|s|m|u for each ready list  7 retention of system errors (ms)  8 id of the worker
--       9 1 when the worker may take a suspect: an operation during which workers have died
-- Reply {now (ms), next due (ms from now, -1 none), more async 0|1, more sync 0|1, registry version,
--        registry as {field, kind, ...} when the version differs, else {}, operations,
--        suspects: -1 one waits and was not to be taken, 0 none met, else for how long (ms) the one taken runs alone}
--       an operation is 12 values: id, index of its list (from 1), token, deliveries, attempts, crashes,
--       exhaustions, first call of its processor (ms, 0 none), due (ms), accepted (ms), trace of the last attempt, body
-- Cost  O(lists) + about 4 commands for each operation; promotes at most 100. Its first write is a ZREM or LPOP,
--       so a Redis that is out of memory still drains.
local prefix, retention = ARGV[1], tonumber(ARGV[7])
local slots = { a = tonumber(ARGV[2]), s = tonumber(ARGV[3]) }
local kinds, now = ARGV[6], now_ms()
-- As texts, each made once: Redis takes longer to write a number out than to read a field.
local at, expires = now .. '', now + ARGV[4] .. ''
local by = at .. ' ' .. ARGV[8]

local function refuse(id, reason)
  reject(prefix, KEYS[6], id, reason, now, retention)
end

local function promote()
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)
  for _, id in ipairs(due) do
    redis.call('ZREM', KEYS[2], id)
    local key = op_key(prefix, id)
    local queue = redis.pcall('HGET', key, 'q')
    if type(queue) == 'table' then
      refuse(id, 'wrong_type')
    elseif not is_queue(queue) then
      refuse(id, queue and 'bad_queue' or 'body_missing')
    elseif type(redis.pcall('RPUSH', prefix .. queue, id)) == 'table' then
      refuse(id, 'no_list')
    else
      redis.call('HSET', key, 'st', 'ready')
      depth(prefix, 'd', queue, -1)
      wake(prefix, redis.call('HGET', KEYS[7], queue))
    end
  end
end

local leases, operations, suspects = {}, {}, 0
local token, token_text

-- A suspect is claimed by itself or not at all: were it to kill its worker, nothing else would be under suspicion.
local function is_alone(alone)
  if ARGV[9] ~= '1' or #operations > 0 then
    suspects = -1
    return false
  end
  suspects = math.max(1, math.min(tonumber(alone or 1), 60000))
  return true
end

local states = { ready = true, delayed = true, leased = true, done = true, failed = true, system_error = true }

-- What is wrong with what was read of a hash; nil when nothing is.
local function fault_of(h)
  if h.err then return 'wrong_type' end
  if not h[2] then return 'body_missing' end
  if not states[h[1]] then return 'not_an_operation' end
  if not are_natural(h, 3, 10) then return 'bad_fields' end
end

-- Leases one id taken from list number j, that of `queue`; false when it was not an operation, nil when it is to go back.
local function lease(id, j, queue)
  local key = op_key(prefix, id)
  local h = redis.pcall('HMGET', key, 'st', 'b', 'at', 'dc', 'cr', 'ex', 'fa', 'rd', 'ts', 'al', 'tp', 'q')
  local fault = fault_of(h)
  if fault then
    refuse(id, fault)
    return false
  end
  if h[1] ~= 'ready' then
    count(prefix, 'skipped', 1)
    return false
  end
  if h[10] and not is_alone(h[10]) then return nil end
  if not h[8] then  -- written by hand: accepted here, so that the counts stay whole and it can go back to its queue
    redis.call('HSET', key, 'q', queue, 'ts', at, 'rd', at)
    count(prefix, 'enqueued', 1)
  elseif h[12] ~= queue then  -- where it was found counts: there it goes back to
    redis.call('HSET', key, 'q', queue)
  end
  local deliveries = (h[4] or 0) + 1
  if not token then
    token = new_token(prefix)
    token_text = token .. ''
  end
  local deliveries_text = deliveries == 1 and '1' or deliveries .. ''
  redis.call('HSET', key, 'st', 'leased', 'tk', token_text, 'dc', deliveries_text, 'w', by)
  leases[#leases + 1] = expires
  leases[#leases + 1] = id
  local n = #operations
  operations[n + 1], operations[n + 2], operations[n + 3], operations[n + 4] = id, j, token, deliveries
  operations[n + 5], operations[n + 6], operations[n + 7] = h[3] or 0, h[5] or 0, h[6] or 0
  operations[n + 8], operations[n + 9], operations[n + 10] = h[7] or 0, h[8] or now, h[9] or now
  operations[n + 11], operations[n + 12] = h[11] or '', h[2]
  return true
end

-- Those from number i on go back to the head of their list, in their order.
local function put_back(list, ids, i)
  for k = #ids, i, -1 do redis.call('LPUSH', list, ids[k]) end
end

-- When the next one is due (ms); nil when nothing is delayed.
local function next_due()
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2])
end

local due = next_due()
if due and due <= now then
  promote()
  due = next_due()
end
local more = { a = 0, s = 0 }
for j = 1, #KEYS - 8 do
  local list, kind = KEYS[j + 8], string.sub(kinds, j, j)
  local queue = string.sub(list, #prefix + 1)
  local drained, leased = false, 0
  while not drained do
    local room = slots[kind] or math.min(slots.a, slots.s)
    if room <= 0 or suspects ~= 0 then break end
    local ids = redis.pcall('LPOP', list, room)
    if not ids or ids.err then drained = true else  -- an error: a key of that name that is no list
      drained = #ids < room
      for i, id in ipairs(ids) do
        local taken = suspects == 0 and lease(id, j, queue)
        if taken then
          leased = leased + 1
          if kind ~= 's' then slots.a = slots.a - 1 end
          if kind ~= 'a' then slots.s = slots.s - 1 end
        elseif suspects ~= 0 then
          put_back(list, ids, i)
          drained = false
          break
        end
      end
    end
  end
  depth(prefix, 'l', queue, leased)
  local side = kind == 's' and 's' or 'a'
  if not drained and more[side] == 0 then more[side] = redis.call('EXISTS', list) end
end
if #leases > 0 then redis.call('ZADD', KEYS[1], unpack(leases)) end
if more.a == 1 then wake(prefix, 'a') end
if more.s == 1 then wake(prefix, 's') end

local version = redis.call('GET', KEYS[8]) or '0'
local registry = version ~= ARGV[5] and redis.call('HGETALL', KEYS[7]) or {}
return { now, due and math.max(due - now, 0) or -1, more.a, more.s, version, registry, operations, suspects }
