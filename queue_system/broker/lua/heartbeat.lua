-- A worker says that it lives, with the figures of its thread pool.
-- KEYS  1 workers
-- ARGV  1 prefix  2 worker id  3 expiry (ms; 0: it leaves)  then field, value pairs
-- Reply now (ms)
local key, now = ARGV[1] .. 'worker:' .. ARGV[2], now_ms()
redis.call('ZREM', KEYS[1], ARGV[2])
if ARGV[3] == '0' then
  redis.call('DEL', key)
  return now
end
redis.call('ZADD', KEYS[1], now, ARGV[2])
redis.call('HSET', key, unpack(ARGV, 4))
redis.call('PEXPIRE', key, ARGV[3])
return now
