-- A worker says that it lives, with the figures of its thread pool.
-- KEYS  1 workers  2 none
-- ARGV  1 prefix  2 worker id  3 expiry (ms; 0: it leaves)  then field, value pairs
-- Reply now (ms)
local key, now = ARGV[1] .. 'worker:' .. ARGV[2], now_ms()
redis.call('ZREM', KEYS[1], ARGV[2])
if ARGV[3] == '0' then
  redis.call('DEL', key)
  return now
end
redis.call('ZADD', KEYS[1], now, ARGV[2])
if type(redis.pcall('HSET', key, unpack(ARGV, 4))) == 'table' then  -- no hash: it is in the way
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(ARGV, 4))
end
redis.call('PEXPIRE', key, ARGV[3])
return now
