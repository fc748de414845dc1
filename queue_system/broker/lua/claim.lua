-- Moves what is due to its queue, then leases ready operations in strict priority order. Of the queues of one priority
-- that one comes first that has waited longest since it was last served, or became ready.
-- KEYS  1 leases  2 delayed  3 metrics  4 wake  5 wake:sync  6 system_errors  7 registry  8 ready  9 ready:sync
--       10 none
-- ARGV  1 prefix  2 free async slots  3 free sync slots  4 lease (ms)  5 retention of system errors (ms)
--       6 id of the worker  7 1 when the worker may take a suspect: an operation during which workers have died
--       then "{priority}:{queue}" of the only queues to take from (none: all)
-- Reply {now (ms), next due (ms from now, -1 none), more async 0|1, more sync 0|1, queues as {queue, kind, ...},
--        operations, suspects: -1 one waits and was not to be taken, 0 none met, else for how long (ms) the one taken
--        runs alone}
--       an operation is 12 values: id, number of its queue (from 1), token, deliveries, attempts, crashes,
--       exhaustions, first call of its processor (ms, 0 none), due (ms), accepted (ms), trace of the last attempt, body
-- Cost  O(queues that it takes from, and mixed ones that wait for a slot) + about 4 commands for each operation; with
--       "only" queues O(those), too. Promotes at most 100. Its first write is a ZREM or LPOP, so a Redis that is out of
--       memory still drains. What it holds when it meets an error goes back.
local prefix, retention = ARGV[1], tonumber(ARGV[5])
local slots = { a = tonumber(ARGV[2]), s = tonumber(ARGV[3]) }
local time = redis.call('TIME')
local now, us = time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000000 + time[2]
-- As texts, each made once: Redis takes longer to write a number out than to read a field.
local at, expires = now .. '', now + ARGV[4] .. ''
local by = at .. ' ' .. ARGV[6]

local function refuse(id, reason)
  reject(prefix, KEYS[6], id, reason, now, retention)
end

-- Returns the error of Redis that stopped it, if one did.
local function promote()
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)
  for _, id in ipairs(due) do
    local key = op_key(prefix, id)
    local queue = redis.pcall('HGET', key, 'q')
    if type(queue) == 'table' and not is_wrong_type(queue) then return queue end
    redis.call('ZREM', KEYS[2], id)
    local pushed = type(queue) == 'string' and is_queue(queue) and redis.pcall('RPUSH', prefix .. queue, id)
    if type(queue) == 'table' then
      refuse(id, 'wrong_type')
    elseif not pushed then
      refuse(id, queue and 'bad_queue' or 'body_missing')
    elseif is_wrong_type(pushed) then
      refuse(id, 'no_list')
    elseif type(pushed) == 'table' then
      redis.call('ZADD', KEYS[2], now, id)
      return pushed
    else
      redis.call('HSET', key, 'st', 'ready')
      depth(prefix, 'd', queue, -1)
      made_ready(prefix, queue, redis.pcall('HGET', KEYS[7], queue), pushed, us)
    end
  end
end

local leases, operations, suspects = {}, {}, 0
local token, token_text
local refusal  -- an error of Redis: nothing more is taken

-- Gets the token and notes the first lease, and so finds out whether either can be had. False when not.
local function begin(id)
  local given = new_token(prefix)
  local noted = type(given) == 'table' and given or redis.pcall('ZADD', KEYS[1], expires, id)
  if type(noted) == 'table' then
    refusal = noted
    return false
  end
  token, token_text = given, given .. ''
  return true
end

-- A suspect is claimed by itself or not at all: were it to kill its worker, nothing else would be under suspicion.
local function is_alone(alone)
  if ARGV[7] ~= '1' or #operations > 0 then
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

-- Leases one id taken from the list of queue number j, `queue`; false when it was not an operation, nil when it is to go back.
local function lease(id, j, queue)
  local key = op_key(prefix, id)
  local h = redis.pcall('HMGET', key, 'st', 'b', 'at', 'dc', 'cr', 'ex', 'fa', 'rd', 'ts', 'al', 'tp', 'q')
  if h.err and not is_wrong_type(h) then
    refusal = h
    return nil
  end
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
  local is_first = not token
  if is_first and not begin(id) then return nil end
  local deliveries = (h[4] or 0) + 1
  local deliveries_text = deliveries == 1 and '1' or deliveries .. ''
  local set = redis.pcall('HSET', key, 'st', 'leased', 'tk', token_text, 'dc', deliveries_text, 'w', by)
  if type(set) == 'table' then
    refusal = set
    if is_first then redis.call('ZREM', KEYS[1], id) end
    return nil
  end
  if not h[8] then  -- written by hand: accepted here, so that the counts stay whole and it can go back to its queue
    redis.call('HSET', key, 'q', queue, 'ts', at, 'rd', at)
    count(prefix, 'enqueued', 1)
  elseif h[12] ~= queue then  -- where it was found counts: there it goes back to
    redis.call('HSET', key, 'q', queue)
  end
  if not is_first then
    leases[#leases + 1] = expires
    leases[#leases + 1] = id
  end
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

local more = { a = 0, s = 0 }
local sources = {}  -- the queues that were taken from, each with its kind
local index = { a = KEYS[8], s = KEYS[9] }
local changes = { a = {}, s = {} }  -- new places in the index

-- Takes what there is a slot for from one list; `alone`: no other queue is known to be ready.
local function take_from(queue, kind, side, alone)
  local list, emptied, leased = prefix .. queue, false, 0
  local j = #sources / 2 + 1
  while not emptied do
    local room = slots[kind] or math.min(slots.a, slots.s)
    if room <= 0 or suspects ~= 0 or refusal then break end
    local ids = redis.pcall('LPOP', list, room)
    if not ids or ids.err then emptied = true else  -- an error: a key of that name that is no list
      emptied = #ids < room
      for i, id in ipairs(ids) do
        local taken = suspects == 0 and not refusal and lease(id, j, queue)
        if taken then
          leased = leased + 1
          if kind ~= 's' then slots.a = slots.a - 1 end
          if kind ~= 'a' then slots.s = slots.s - 1 end
        elseif suspects ~= 0 or refusal then
          put_back(list, ids, i)
          emptied = false
          break
        end
      end
    end
  end
  if leased > 0 then sources[2 * j - 1], sources[2 * j] = queue, kind end
  depth(prefix, 'l', queue, leased)
  emptied = emptied or redis.call('EXISTS', list) == 0
  if not emptied then more[kind == 's' and 's' or 'a'] = 1 end
  -- Others of its priority come first now: also where a suspect stopped the claim, which would be met again.
  if emptied or not alone then
    local places = changes[side]
    places[#places + 1] = emptied and place_of_empty(us) or place_of_ready(queue, us)
    places[#places + 1] = queue
  end
end

-- The rows of one side of the index, read step by step: names, places, and kinds where they are not all the same.
local function fill(rows, names, places)
  rows.names, rows.places, rows.i, rows.read = names, places, 1, rows.read + #names
  rows.kinds = rows.side == 'a' and #names > 0 and slots.a > 0 and redis.pcall('HMGET', KEYS[7], unpack(names))
end

local function read_all(rows)
  local n = slots[rows.side] == 0 and 1 or rows.read == 0 and 32 or 500
  local flat = redis.pcall('ZRANGEBYSCORE', index[rows.side], '-inf', '(6000000000000000', 'WITHSCORES',
    'LIMIT', rows.read, n)
  if flat.err then  -- somebody's key of that name is no sorted set
    local aside = prefix .. 'broken:' .. string.sub(index[rows.side], #prefix + 1)
    redis.call('RENAME', index[rows.side], aside)
    redis.call('PEXPIRE', aside, retention)
    flat = {}
  end
  local names, places = {}, {}
  for i = 1, #flat, 2 do names[#names + 1], places[#places + 1] = flat[i], tonumber(flat[i + 1]) end
  rows.over = #names < n
  fill(rows, names, places)
end

local function read_only(rows)
  local found = {}
  for first = 8, #ARGV, 500 do
    local places = redis.pcall('ZMSCORE', index[rows.side], unpack(ARGV, first, math.min(first + 499, #ARGV)))
    for i, place in ipairs(places) do
      place = tonumber(place or 6e15)
      if place < 6e15 then found[#found + 1] = { ARGV[first + i - 1], place } end
    end
  end
  table.sort(found, function(x, y) return x[2] < y[2] or (x[2] == y[2] and x[1] < y[1]) end)
  local names, places = {}, {}
  for i, row in ipairs(found) do names[i], places[i] = row[1], row[2] end
  rows.over = true
  fill(rows, names, places)
end

-- The name of the next queue of this side, nil at the end.
local function next_of(rows)
  if rows.i > #rows.names and not rows.over then
    if #ARGV > 7 then read_only(rows) else read_all(rows) end
  end
  return rows.names[rows.i]
end

local function write_changes()
  for side, places in pairs(changes) do
    for first = 1, #places, 1000 do
      redis.pcall('ZADD', index[side], unpack(places, first, math.min(first + 999, #places)))
    end
    changes[side] = {}
  end
end

local function take()
  local a = { side = 'a', names = {}, i = 1, read = 0 }
  local s = { side = 's', names = {}, i = 1, read = 0 }
  while suspects == 0 and not refusal do
    local rows, of_a, of_s = a, slots.a > 0 and next_of(a), slots.s > 0 and next_of(s)
    if not of_a and not of_s then break end
    if not of_a then
      rows = s
    elseif of_s then
      local x, y = a.places[a.i], s.places[s.i]
      if y < x or (y == x and of_s < of_a) then rows = s end
    end
    local i = rows.i
    rows.i = i + 1
    local kind = rows == s and 's' or rows.kinds[i] or 'u'
    if (slots[kind] or math.min(slots.a, slots.s)) > 0 then
      take_from(rows.names[i], kind, rows.side, a.read + s.read == 1)
    elseif more.a == 0 then
      more.a = redis.call('EXISTS', prefix .. rows.names[i])
    end
  end
  if next_of(a) then more.a = 1 end
  if next_of(s) then more.s = 1 end
  write_changes()
end

-- Looks at some of the queues for one that is ready and not in the index: written by an earlier version, or by hand.
-- That is done when there was nothing to take; reap looks at all of them in turn.
local function find_unlisted()
  local names, found = {}, false
  for i = 1, math.min(10, #ARGV - 7) do names[i] = ARGV[8 + (us + i) % (#ARGV - 7)] end
  if #ARGV == 7 then names = redis.pcall('HRANDFIELD', KEYS[7], 10) or {} end
  for _, queue in ipairs(names) do
    if is_queue(queue) and length_of(prefix .. queue) > 0 then
      local kind = register_queue(prefix, queue, 'u')
      local place = redis.pcall('ZSCORE', index_of(prefix, kind), queue)
      if not place or (type(place) == 'string' and tonumber(place) >= 6e15) then
        list_ready(prefix, queue, kind, us)
        found = true
      end
    end
  end
  return found
end

local due = next_due()
if due and due <= now then
  refusal = promote()
  due = next_due()
end
if not refusal then take() end
if #operations == 0 and suspects == 0 and not refusal and slots.a + slots.s > 0 and find_unlisted() then take() end
if #leases > 0 then redis.call('ZADD', KEYS[1], unpack(leases)) end
if refusal and #operations == 0 then return refusal end
if more.a == 1 then wake(prefix, 'a') end
if more.s == 1 then wake(prefix, 's') end
return { now, due and math.max(due - now, 0) or -1, more.a, more.s, sources, operations, suspects }
