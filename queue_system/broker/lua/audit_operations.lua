-- What the invariants say about single operations, all of one instant. Reads only.
-- KEYS  1 leases  2 delayed  3 failures  4 system_errors
-- ARGV  1 prefix  then ids
-- Reply {now (ms), latest token, values}: 14 values for each id: what its key is (hash | none | other), state, queue,
--       token, deliveries, attempts, crashes, accepted (ms), length of the body, time to live (ms, -1 without an
--       expiry), its scores in the four sets of KEYS ('' where it is not); absent fields are ''
-- Cost  7 commands for each id; the caller asks for at most 250
local prefix, reply = ARGV[1], {}
for i = 2, #ARGV do
  local id, n = ARGV[i], #reply
  local key = op_key(prefix, id)
  local h, ttl, body = redis.pcall('HMGET', key, 'st', 'q', 'tk', 'dc', 'at', 'cr', 'ts'), -1, 0
  if h.err then
    h = {}
    reply[n + 1] = 'other'
  else
    ttl = redis.call('PTTL', key)
    body = redis.call('HSTRLEN', key, 'b')
    reply[n + 1] = ttl == -2 and 'none' or 'hash'
  end
  for j = 1, 7 do reply[n + 1 + j] = h[j] or '' end
  reply[n + 9], reply[n + 10] = body, ttl
  for j = 1, 4 do reply[n + 10 + j] = redis.call('ZSCORE', KEYS[j], id) or '' end
end
return { now_ms(), redis.call('GET', prefix .. 'token') or '0', reply }
