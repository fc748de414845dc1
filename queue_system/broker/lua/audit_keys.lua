-- What keys are that belong to no operation; of a dedup key also whom it names. Reads only.
-- KEYS  1 registry
-- ARGV  1 prefix  then names, without the prefix
-- Reply 5 values for each: type, time to live (ms; -1 without an expiry, -2 no such key), 1 when a known queue has that
--       name, holder of a dedup key or '', state of that holder if it has this dedup key, else ''
-- Cost  5 commands for each at most; the caller asks for at most 250
local prefix, reply = ARGV[1], {}
for i = 2, #ARGV do
  local name, n = ARGV[i], #reply
  local key = prefix .. name
  local digest = string.match(name, '^dedup:(.*)$')
  reply[n + 1], reply[n + 2] = redis.call('TYPE', key).ok, redis.call('PTTL', key)
  local known = redis.pcall('HEXISTS', KEYS[1], name)
  reply[n + 3], reply[n + 4], reply[n + 5] = type(known) == 'number' and known or 0, '', ''
  if digest and reply[n + 1] == 'string' then
    local holder = holder_id(redis.call('GET', key))
    local h = redis.pcall('HMGET', op_key(prefix, holder), 'st', 'dk')
    reply[n + 4] = holder
    if not h.err and h[2] == digest then reply[n + 5] = h[1] or '' end
  end
end
return reply
