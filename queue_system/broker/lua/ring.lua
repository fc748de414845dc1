-- Ends the blocking read of one worker, or the next one that it begins soon.
-- KEYS  1 the worker's own marker  2 none
-- ARGV  1 prefix  2 for how long the marker stays where nobody waits for it (ms)
-- Reply 1
-- Cost  2 commands
redis.call('ZADD', KEYS[1], 0, '0')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
