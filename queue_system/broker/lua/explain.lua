-- Where one operation is, what is before it, and who could take it. Reads only.
-- KEYS  1 registry  2 delayed  3 leases  4 workers
-- ARGV  1 prefix  2 id  3 age (ms) up to which a worker counts as alive  4 ids of its list that are looked at, at most
-- Reply {now (ms), type of its key, fields, kind of its queue, position in its list (from 0; -1 not found),
--        length of its list, due (ms, -1 none), end of its lease (ms, -1 none), last heartbeat of the worker of its last
--        claim (ms, -1 none), queues of higher priority, workers}
--       fields are {name, value, ...}; a queue is {"{priority}:{queue}", kind, length, ...} and not empty;
--       a worker is 7 values: id, threads, threads active, tasks, tasks busy, names of its only queues, claims 0|1
-- Cost  O(queues), up to 200 workers, and (only for a ready operation) a search among ARGV[4] ids
local prefix, id, now = ARGV[1], ARGV[2], now_ms()
local key = op_key(prefix, id)
local names = { 'st', 'q', 'k', 'b', 'ts', 'rd', 'fa', 'fl', 'dc', 'at', 'cr', 'ex', 'err', 'hist', 'tp', 'w', 'pb', 'al' }
local kind_of_key = redis.call('TYPE', key).ok
local fields, h = {}, {}
if kind_of_key == 'hash' then
  for i, value in ipairs(redis.call('HMGET', key, unpack(names))) do
    if value then
      h[names[i]] = value
      fields[#fields + 1], fields[#fields + 2] = names[i], value
    end
  end
end

local ranks = { high = 1, normal = 2, low = 3 }
local function rank(queue)
  return ranks[string.match(queue, '^[^:]*')] or 4
end

local kind, position, length, higher = '', -1, 0, {}
if h.q then
  kind = redis.call('HGET', KEYS[1], h.q) or ''
  local list = prefix .. h.q
  if redis.call('TYPE', list).ok == 'list' then
    length = redis.call('LLEN', list)
    if h.st == 'ready' then position = redis.call('LPOS', list, id, 'MAXLEN', ARGV[4]) or -1 end
  end
  local flat = redis.call('HGETALL', KEYS[1])
  for i = 1, #flat, 2 do
    if rank(flat[i]) < rank(h.q) then
      local waiting = length_of(prefix .. flat[i])
      if waiting > 0 then
        for _, value in ipairs({ flat[i], flat[i + 1], waiting }) do higher[#higher + 1] = value end
      end
    end
  end
end

local workers = {}
local alive = redis.call('ZRANGEBYSCORE', KEYS[4], now - tonumber(ARGV[3]), '+inf', 'LIMIT', 0, 200)
for _, worker in ipairs(alive) do
  local beat = redis.call('HMGET', prefix .. 'worker:' .. worker, 'threads', 'threads_active', 'tasks', 'tasks_busy',
    'queues', 'claims')
  workers[#workers + 1] = worker
  for i = 1, 6 do workers[#workers + 1] = beat[i] or '' end
end

local holder = h.w and string.match(h.w, ' (.+)$')
return { now, kind_of_key, fields, kind, position, length,
  redis.call('ZSCORE', KEYS[2], id) or -1, redis.call('ZSCORE', KEYS[3], id) or -1,
  holder and redis.call('ZSCORE', KEYS[4], holder) or -1, higher, workers }
