-- Gives an operation up: to the failures, or (not understood, not allowed) to the system errors.
-- KEYS  1 leases  2 failures or system_errors  3 metrics  4 registry  5 registry:version  6 wake
--       7 none
-- ARGV  1 prefix  2 id  3 token  4 state failed|system_error  5 attempts to add  6 counters, comma-separated
--       7 error (JSON)  8 record of the attempt (JSON) or ''  9 retention (ms)
--       10 callback id or ''  11 callback "{priority}:{queue}"  12 callback body  13 1 when sent again
--       14 most entries that are kept  15 most bytes of all that is kept
-- Reply 1 given up | 0 stale
local prefix, id = ARGV[1], ARGV[2]
local queue = holds(prefix, id, ARGV[3])
if not queue then
  if ARGV[13] ~= '1' then count(prefix, 'stale_acks', 1) end
  return 0
end
local key, now = op_key(prefix, id), now_ms()
-- What cannot be read raises while nothing has been written.
local kept = ARGV[9] + 3600000
redis.call('ZCARD', KEYS[2])
local known = ARGV[10] ~= '' and check_callbacks(prefix, ARGV[11])
redis.call('ZREM', KEYS[1], id)
redis.call('HSET', key, 'st', ARGV[4], 'err', ARGV[7], 'fl', now)
if ARGV[5] ~= '0' then add(key, 'at', ARGV[5]) end
append_history(key, ARGV[8])
redis.call('ZADD', KEYS[2], now, id)
note_size(prefix, id, redis.call('HSTRLEN', key, 'b') + #ARGV[7] + redis.call('HSTRLEN', key, 'hist'))
depth(prefix, 'l', queue, -1)
if ARGV[4] == 'failed' then depth(prefix, 'f', queue, 1) end
-- Longer than its entry is listed: whoever takes that out still sees of which queue it was.
redis.call('PEXPIRE', key, kept)
release_dedup(prefix, id, redis.call('HGET', key, 'dk'))
count_all(prefix, ARGV[6])
keep_within(prefix, KEYS[2], ARGV[4], tonumber(ARGV[14]), tonumber(ARGV[15]), 3)
if ARGV[10] ~= '' then spawn_callback(prefix, now, ARGV[10], ARGV[11], ARGV[12], known) end
return 1
